"""Networks of earlier runs: found by folder, checkpoint or plain state dict, and checked."""

import copy
import shutil

import pytest
import torch

from ltbench import records, stages
from ltbench.errors import UserError
from ltbench.models import build_backbone
from ltbench.stages import Trained


def load(path, num_classes=10, in_chans=1, **named):
    return stages.load(Trained(str(path), **named), num_classes, in_chans, role="teacher")


def test_a_run_gives_its_network_frozen_with_what_it_knew(digits_run):
    record = records.read_record(digits_run.folder / "record.json")
    start = load(digits_run.folder, selection="best")
    saved = torch.load(digits_run.best, weights_only=True)["state_dict"]
    for name, value in start.network.state_dict().items():
        assert torch.equal(value, saved[f"net.{name}"])
    assert not start.network.training
    assert not any(p.requires_grad for p in start.network.parameters())
    assert start.data["class_names"] == record["data"]["class_names"]
    assert start.data["image_size"] == 8
    assert start.lineage == {
        "role": "teacher",
        "job_id": record["job_id"],
        "selection": "best",
        "path": str(digits_run.best),
    }


def test_a_network_is_named_by_its_run_wherever_that_lies(digits_run, tmp_path):
    moved = shutil.copytree(digits_run.folder, tmp_path / "moved")
    by_folder = stages.identity(Trained(str(digits_run.folder)))
    assert stages.identity(Trained(str(moved))) == by_folder
    assert stages.identity(Trained(str(digits_run.last))) == by_folder
    assert stages.identity(Trained(str(digits_run.folder), "best")) != by_folder
    alone = shutil.copy(digits_run.last, tmp_path / "alone.ckpt")
    assert stages.identity(Trained(alone)).keys() == {"sha256", "backbone", "head"}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_plain_state_dict_needs_its_backbone(tmp_path, wrap, prefix):
    net = build_backbone("tiny_net", 10, 1)
    path = tmp_path / "weights.pt"
    torch.save(wrap({prefix + k: v for k, v in net.state_dict().items()}), path)
    images = torch.rand(2, 1, 8, 8)
    found = load(path, backbone="tiny_net").network
    assert torch.equal(found(images), copy.deepcopy(net).eval()(images))
    with pytest.raises(UserError, match="which timm backbone"):
        load(path)
    with pytest.raises(UserError, match="does not fit its backbone"):
        load(path, backbone="resnet32_cifar")
    with pytest.raises(UserError, match="does not fit its backbone"):
        load(path, num_classes=7, backbone="tiny_net")


def test_mistakes_are_named(digits_run, tmp_path):
    with pytest.raises(UserError, match="10 classes and 1 image channels; this data has 3 and 1"):
        load(digits_run.folder, num_classes=3)
    with pytest.raises(UserError, match="no trained network"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="a path, or the backbone"):
        stages.load(Trained(), 10, 1, role="teacher")
    unfinished = shutil.copytree(digits_run.folder, tmp_path / "unfinished")
    record = records.read_record(unfinished / "record.json") | {"status": "running"}
    records.write_record(unfinished / "record.json", record)
    with pytest.raises(UserError, match="is not finished"):
        load(unfinished)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no state dict but list"):
        load(tmp_path / "list.pt", backbone="tiny_net")


class Boom:
    def __reduce__(self):
        return (open, ("boom", "w"))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Boom()}, "evil.pt")
    with pytest.raises(UserError, match="cannot be loaded safely"):
        load(tmp_path / "evil.pt", backbone="tiny_net")
    assert not (tmp_path / "boom").exists()

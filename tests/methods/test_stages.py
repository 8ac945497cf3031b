"""Networks of earlier runs: found by folder, checkpoint or plain state dict, and checked."""

import copy
import shutil

import pytest
import torch
from jsonargparse import ArgumentParser

from ltbench import records
from ltbench.errors import UserError
from ltbench.methods.parts import stages
from ltbench.methods.parts.stages import Trained
from ltbench.models import build_backbone


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
    with pytest.raises(UserError, match="backbone"):
        load(path)
    with pytest.raises(UserError, match="backbone"):
        load(path, backbone="resnet32_cifar")
    with pytest.raises(UserError, match="backbone"):
        load(path, num_classes=7, backbone="tiny_net")


def test_mistakes_are_named(digits_run, tmp_path):
    with pytest.raises(UserError, match="10 classes"):
        load(digits_run.folder, num_classes=3)
    with pytest.raises(UserError, match="no trained network"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="path"):
        stages.load(Trained(), 10, 1, role="teacher")
    unfinished = shutil.copytree(digits_run.folder, tmp_path / "unfinished")
    record = records.read_record(unfinished / "record.json") | {"status": "running"}
    records.write_record(unfinished / "record.json", **record)
    with pytest.raises(UserError, match="is not finished"):
        load(unfinished)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="list"):
        load(tmp_path / "list.pt", backbone="tiny_net")


class Boom:
    def __reduce__(self):
        return (open, ("boom", "w"))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Boom()}, "evil.pt")
    with pytest.raises(UserError, match="safely"):
        load(tmp_path / "evil.pt", backbone="tiny_net")
    assert not (tmp_path / "boom").exists()


# --- what others released ---


def wrapped_by_paco(net, dim=4):
    """The names of PaCo's checkpoints: arXiv 2107.12028, as trained with DataParallel."""
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    projection = {"fc.0.weight": torch.rand(64, 64), "fc.2.weight": torch.rand(dim, 64)}
    state = {
        **{f"encoder_q.{k}": v for k, v in (own | projection).items()},
        **{f"encoder_k.{k}": torch.zeros_like(v) for k, v in (own | projection).items()},
        **{f"linear.{kind}": net.get_parameter(f"fc.{kind}").data for kind in ("weight", "bias")},
        "linear_k.weight": torch.zeros(10, 64),
        "queue": torch.rand(8, dim),
        "queue_l": torch.zeros(8),
    }
    return {"epoch": 400, "state_dict": {f"module.{k}": v for k, v in state.items()}}


def named_by_ldam(net):
    """The names of LDAM-DRW's checkpoints, arXiv 1906.07413: a cosine head holds its transpose."""
    state = net.state_dict()
    weight = state.pop("fc.weight")
    cosine = "fc.bias" not in state
    state = {k.replace("fc.bias", "linear.bias"): v for k, v in state.items()}
    return {"state_dict": {**state, "linear.weight": weight.T if cosine else weight}}


@pytest.mark.parametrize(
    ("head", "release"),
    [("linear", wrapped_by_paco), ("linear", named_by_ldam), ("cosine", named_by_ldam)],
)
def test_released_teachers_are_read(head, release, tmp_path):
    net = build_backbone("resnet32_cifar", 10, head=head).eval()
    torch.save(release(net), tmp_path / "released.pth.tar")
    found = load(tmp_path / "released.pth.tar", 10, 3, backbone="resnet32_cifar", head=head)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.network(images), net(images))


def test_a_released_teacher_of_another_network_or_other_classes_is_refused(tmp_path):
    path = tmp_path / "released.pth.tar"
    torch.save(wrapped_by_paco(build_backbone("resnet32_cifar", 10)), path)
    with pytest.raises(UserError, match=r"size mismatch for fc\.weight"):
        load(path, 7, 3, backbone="resnet32_cifar")
    with pytest.raises(UserError, match="Missing"):
        load(path, 10, 3, backbone="resnet18")
    cut = wrapped_by_paco(build_backbone("resnet32_cifar", 10))
    del cut["state_dict"]["module.encoder_q.conv1.weight"]
    torch.save(cut, path)
    with pytest.raises(UserError, match=r"Missing key.*conv1\.weight"):
        load(path, 10, 3, backbone="resnet32_cifar")


def test_timms_weights_keep_their_classes_and_say_what_they_know(monkeypatch):
    def untrained(pretrained=False, **spec):
        return build_backbone(**spec)

    monkeypatch.setattr(stages, "build_backbone", untrained)  # no download
    trained = Trained(backbone="resnet10t.c3_in1k")
    start = stages.load(trained, 1000, 3, role="teacher")
    assert (start.data["mean"], start.data["image_size"]) == ([0.485, 0.456, 0.406], 176)
    with pytest.raises(UserError, match="1000 classes"):
        stages.load(trained, 10, 3, role="teacher")
    parser = ArgumentParser()
    parser.add_argument("--teacher", type=Trained | None)
    given = parser.parse_args(["--teacher.path", "null", "--teacher.backbone", "resnet10t.c3_in1k"])
    assert Trained(**given.teacher.as_dict()) == trained
    with pytest.raises(UserError, match="unknown backbone"):
        stages.load(Trained(backbone="resnet10x"), 10, 3, role="teacher")

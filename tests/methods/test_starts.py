"""Any classifier starts from a trained network: frozen parts, new heads, several heads."""

import shutil

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import yaml
from support import TINY, Experts, TinyNet, fit
from torch.testing import assert_close

from ltbench.data import LongTailDataModule
from ltbench.errors import UserError
from ltbench.methods.erm import ERM
from ltbench.methods.parts.stages import Trained
from ltbench.methods.parts.trainable import SELECTIONS, let_learn, rest
from ltbench.models import InputStatistics, build_backbone, penultimate, trained_on
from ltbench.models.weights import read
from ltbench.objectives import Objective, harmonic_mean
from ltbench.optim.sam import SAM
from ltbench.records import read_record

DATA = {"imbalance_factor": 10, "largest": 60, "val_fraction": 0.2, "batch_size": 32}


def state_of(checkpoint):
    state = read(checkpoint)["state_dict"]
    return {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}


def train(run, epochs=1, data=None, **options):
    L.seed_everything(0, verbose=False)
    module = LongTailDataModule("digits", **DATA | (data or {}))
    start = {"init_from": Trained(str(run)), "backbone": "tiny_net"}
    model = ERM(10, 1, **start | options)
    return model, fit(model, module, epochs)


def config_of(folder, name="next", **model):
    config = yaml.safe_load(TINY)
    config["model"]["init_args"] |= model
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# --- class re-training ---

CRT = {"trainable": "head", "head_init": "random"}


def test_class_re_training_is_a_config_and_its_checkpoint_needs_no_start(
    digits_run, ltbench, tmp_path
):
    start = shutil.copytree(digits_run.folder, tmp_path / "start")
    config = config_of(tmp_path, init_from={"path": str(start)}, **CRT)
    done = ltbench("fit", "--config", config, "--data.sampler", "class_balanced")
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    before, after = (
        state_of(place / "checkpoints/last.ckpt") for place in (digits_run.folder, folder)
    )
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}  # batch norm's statistics stayed, too
    record = read_record(folder / "record.json")
    (lineage,) = record["lineage"]
    assert lineage["role"] == "init_from"
    assert lineage["job_id"] == read_record(digits_run.folder / "record.json")["job_id"]
    shutil.rmtree(start)
    test = ["--data.sampler", "class_balanced", "--ckpt_path", folder / "checkpoints/last.ckpt"]
    done = ltbench("test", "--config", config, *test)
    assert done.code == 0, done.err
    accuracy = record["metrics"]["last"]["test"]["accuracy"]
    assert f"{100 * accuracy:.1f}" in done.out


def test_frozen_layers_evaluate_and_the_head_learns_under_sam_and_averaging(digits_run):
    model, _ = train(digits_run.folder, 2, gradient_rule=SAM(0.05), ema_decay=0.5, **CRT)
    assert not any(module.training for module in model.net.modules())
    start = state_of(digits_run.last)
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, start[name]) != name.startswith("fc.")


def test_a_start_with_its_own_head_is_the_network_of_the_run(digits_run):
    sgd = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    model, trainer = train(digits_run.folder, trainable="head", **sgd)
    start = state_of(digits_run.last)
    assert all(torch.equal(v, start[name]) for name, v in model.net.state_dict().items())
    accuracy = trainer.callback_metrics["val/accuracy"].item()
    record = read_record(digits_run.folder / "record.json")
    assert accuracy == pytest.approx(record["metrics"]["last"]["val"]["accuracy"])


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_head_of_class_means(digits_run, head):
    sgd = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    options = {"head": head, "head_init": "class_means", "trainable": "head"}
    model, trainer = train(digits_run.folder, **options, **sgd)
    data, net = trainer.datamodule, model.net.eval()
    with torch.no_grad():
        found = penultimate.features(net, data.normalise(data.dataset("train").images))
    labels = data.dataset("train").labels
    means = torch.stack([found[labels == c].mean(0) for c in range(10)])
    assert_close(net.fc.weight.detach(), F.normalize(means))
    assert net.fc.bias is None or not net.fc.bias.any()
    assert trainer.callback_metrics["val/accuracy"] > 0.5  # by class means, without a step


def test_a_null_backbone_is_that_of_the_start(digits_run):
    model, _ = train(digits_run.folder, backbone=None, trainable="head")
    assert isinstance(model.net, TinyNet)
    assert model.network["name"] == "tiny_net"


def test_a_new_head_takes_other_classes_and_a_plain_state_dict(tmp_path):
    other = build_backbone("tiny_net", 7, 1)
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    model, _ = train(tmp_path / "weights.pt", **CRT)
    assert torch.equal(model.net.conv.weight, other.conv.weight)
    with pytest.raises(UserError, match="weights"):
        train(tmp_path / "weights.pt", trainable="head")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "flat_net"}, "model.backbone"),
        ({"head": "cosine"}, "head"),
        ({"trainable": "stem"}, "trainable"),
        ({"init_from": None, "head_init": "random"}, "init_from"),
        ({"init_from": None, "backbone": None}, "init_from"),
        ({"init_from": Trained("nowhere")}, "nowhere"),
        ({"data": {"val_fraction": 0.3}}, "init_from"),
    ],
)
def test_what_cannot_start_is_refused(digits_run, options, message):
    with pytest.raises(UserError, match=message):
        train(digits_run.folder, **options)


# --- what learns ---


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["head"], {"fc.weight", "fc.bias"}),
        (["norms"], {"bn.weight", "bn.bias"}),
        (["biases"], {"bn.bias", "fc.bias"}),
        (["head", "norms"], {"fc.weight", "fc.bias", "bn.weight", "bn.bias"}),
        (["all"], {"conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"}),
    ],
)
def test_what_may_learn(names, expected):
    net = TinyNet()
    let_learn(net, names)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == expected
    rest(net, names)
    assert net.training == (names != ["head"])
    assert net.bn.training == bool({"norms", "biases", "all"} & {*names})
    assert {*names} <= SELECTIONS.keys()


# --- several heads ---


EXPERTS = ("expert0", "expert1", "expert2")


def test_declared_heads_are_features_and_a_linear_map():
    net, images = Experts(), torch.randn(5, 1, 8, 8)
    outputs = penultimate.outputs(net, images)
    assert tuple(outputs) == penultimate.head_names(net) == ("", *EXPERTS)
    assert_close(outputs[""], sum(outputs[name] for name in EXPERTS) / 3)
    found = penultimate.features(net, images)
    assert found.shape == (5, 6 + 7 + 8)
    assert_close(penultimate.classify(net, found), outputs[""])
    weight, bias = penultimate.linear_map(net)
    assert_close(found @ weight.T + bias, outputs[""])


def test_three_experts_are_trained_measured_and_analysed_by_their_declaration(ltbench, tmp_path):
    config = config_of(tmp_path, "experts", backbone="three_experts")
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = read_record(folder / "record.json")["metrics"]["last"]["test"]
    assert {"accuracy", *(f"{name}/accuracy" for name in EXPERTS)} <= metrics.keys()
    done = ltbench("analyze", "features", "--run", folder, "--device", "cpu")
    assert done.code == 0, done.err
    again = config_of(
        tmp_path, "again", backbone="three_experts", init_from={"path": str(folder)}, **CRT
    )
    done = ltbench("fit", "--config", again, "--trainer.max_epochs", "1")
    assert done.code == 0, done.err


# --- input statistics, and names of a user's own ---


def test_weights_say_how_images_are_brought_to_them(digits_run):
    assert InputStatistics.of(trained_on("resnet10t.c3_in1k")) == InputStatistics(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert InputStatistics.of({}) is None
    model, trainer = train(digits_run.folder, **CRT)
    source = trainer.datamodule.source
    assert model.input_statistics.mean == tuple(source.mean)
    assert ERM(10, 1, backbone="tiny_net").input_statistics is None


def my_loss(logits, targets, class_counts, *, sharpness=1.0, weight=None):
    """A loss of a user's own."""
    return F.cross_entropy(sharpness * logits, targets)


def no_loss(logits, targets):
    """Takes no class counts."""


def my_objective(class_counts, coverage_target):
    """An objective of a user's own."""
    return Objective(lambda recall: harmonic_mean(recall) / 2, "hmean_recall")


def test_a_loss_of_ones_own_by_its_path(ltbench, tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_TRUST", __name__)
    args = {"loss": f"{__name__}.my_loss", "loss_args": {"sharpness": 2.0}}
    done = ltbench("fit", "--config", config_of(tmp_path, **args), "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    for wrong in ({"loss": f"{__name__}.no_loss"}, args | {"loss_args": {"gamma": 1.0}}):
        done = ltbench("fit", "--config", config_of(tmp_path, **wrong))
        assert done.code == 2
        assert "loss" in done.err


def test_an_objective_of_ones_own_by_its_path(monkeypatch):
    from ltbench.methods.parts.held_out import HeldOut

    monkeypatch.setenv("LTBENCH_TRUST", __name__)
    held_out = HeldOut(f"{__name__}.my_objective", 10, 0.95)
    assert held_out.monitor == "val/hmean_recall"
    assert not held_out.objective.linear
    with pytest.raises(UserError, match="objective"):
        HeldOut(f"{__name__}.no_loss", 10, 0.95)

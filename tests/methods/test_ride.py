from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import TINY
from torch.nn import functional as F
from torch.testing import assert_close

from ltbench.losses import class_balanced_weights, ldam_loss
from ltbench.methods import RIDE
from ltbench.methods.ride import class_temperatures, diversity
from ltbench.optim.schedules import MultiStep, epoch_of
from ltbench.records import read_record

CONFIGS = Path(__file__).parents[2] / "configs"
COUNTS = torch.tensor([500.0, 50.0, 5.0])
EXPERTS = ("expert0", "expert1", "expert2")


def config_of(folder, name="ride", **arguments):
    config = yaml.safe_load(TINY)
    config["model"]["class_path"] = "RIDE"
    config["model"]["init_args"] |= {"backbone": "three_experts", **arguments}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.paper
def test_the_recipe_has_the_constants_of_the_paper():
    config = yaml.safe_load((CONFIGS / "ride_cifar100.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (config["trainer"]["max_epochs"], data["batch_size"]) == (200, 128)
    rates = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    assert model["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": rates}
    schedule = MultiStep(**model["lr_schedule"]["init_args"])
    assert epoch_of(schedule.warmup, 200) == 5
    changes = [(epoch_of(point, 200), factor) for point, factor in schedule.milestones]
    assert changes == [(160, 0.01), (180, 0.0001)]
    assert (model["diversity_weight"], model["rho"], model["scale"]) == (0.45, 0.05, 30)
    assert epoch_of(model["reweighting"]["start"], 200) == 160
    assert [each["class_path"] for each in data["augment"]] == ["RandomCrop", "HorizontalFlip"]


@pytest.mark.paper
def test_temperatures_of_classes():
    expected = torch.tensor([1, 0.88792, 0.876712])
    assert_close(class_temperatures(COUNTS, 0.05), expected, atol=1e-6, rtol=0)
    assert torch.equal(class_temperatures(COUNTS, 0), torch.ones(3))


@pytest.mark.paper
def test_diversity_is_the_divergence_of_the_mean_from_each_expert():
    logits, temperatures = torch.randn(3, 4, 3), class_temperatures(COUNTS, 0.05)
    mean = (logits.mean(0) / temperatures).softmax(1)
    each = (logits / temperatures).softmax(2)
    expected = (mean * (mean / each).log()).sum() / 4 * temperatures.mean() ** 2
    assert_close(diversity(logits, temperatures), expected)
    assert diversity(logits[:1].expand(3, -1, -1), temperatures).abs() < 1e-6


def test_the_mean_has_no_gradient():
    logits = torch.randn(2, 4, 3, requires_grad=True)
    diversity(logits, torch.ones(3)).backward()
    # d KL(m || z) / d z = softmax(z) - softmax(m)
    mean = logits.detach().mean(0).softmax(1)
    assert_close(logits.grad, (logits.detach().softmax(2) - mean) / 4)


@pytest.mark.paper
@pytest.mark.parametrize("late", [False, True])
def test_the_loss_is_ldams_of_each_expert_less_the_diversity(late):
    model = RIDE(3, 1, backbone="three_experts", diversity_weight=0.45)
    model.class_counts = COUNTS
    model.weight = class_balanced_weights(COUNTS) if late else None
    model.temperatures = class_temperatures(COUNTS, 0.05 if late else 0)
    batch = {"image": torch.randn(6, 1, 8, 8), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    loss, statistics = model.loss_of(batch)
    outputs = model.outputs(batch["image"])
    each = torch.stack([outputs[name] for name in EXPERTS])
    assert each.abs().max() <= 30
    assert_close(outputs[""], each.mean(0))
    expected = sum(
        ldam_loss(z / 30, batch["label"], COUNTS, weight=model.weight) for z in each
    ) - 0.45 * diversity(each, model.temperatures)
    assert_close(loss, expected)
    assert statistics.keys() == {"diversity"}
    assert_close(
        ldam_loss(each[0] / 30, batch["label"], COUNTS),
        F.cross_entropy(
            each[0] - 15 * F.one_hot(batch["label"], 3) * (5 / COUNTS) ** 0.25, batch["label"]
        ),
    )


def test_every_expert_is_measured_kept_and_analysed(ltbench, tmp_path):
    done = ltbench("fit", "--config", config_of(tmp_path))
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder / "record.json")
    assert record["method"] == "ride"
    for metrics in (record["metrics"]["last"]["test"], record["metrics"]["last"]["val"]):
        mean = {name for name in metrics if "/" not in name} - {"per_class_recall"}
        assert {"accuracy", "few_recall", "ece"} <= mean
        for expert in EXPERTS:
            own = {name.partition("/")[2] for name in metrics if name.startswith(f"{expert}/")}
            assert own == mean
            assert expert in done.out
    for name in ("predictions_last.npz", "val_predictions_last.npz"):
        with np.load(folder / name) as stored:
            assert {f"prediction_{name}" for name in EXPERTS} <= {*stored}
            logits, label = stored["logits"], stored["label"]
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            assert stored["confidence"] == pytest.approx(shares.max(1), abs=1e-6)
        split = record["metrics"]["last"]["val" if name.startswith("val") else "test"]
        with np.load(folder / name) as stored:
            for expert in EXPERTS:
                right = (stored[f"prediction_{expert}"] == label).mean()
                assert split[f"{expert}/accuracy"] == pytest.approx(right)
    for analysis in ("confusion", "calibration", "features"):
        done = ltbench("analyze", analysis, "--run", folder, "--device", "cpu")
        assert done.code == 0, done.err
        assert list((folder / "analysis").glob(f"{analysis}*.json"))


@pytest.mark.parametrize(
    ("arguments", "word"), [({"backbone": "tiny_net"}, "tiny_net"), ({"rho": 1.5}, "rho")]
)
def test_what_it_cannot_take_is_refused(refused, tmp_path, arguments, word):
    assert word in refused("fit", "--config", config_of(tmp_path, **arguments))

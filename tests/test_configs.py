"""Every shipped config is taken by the command line; the recipes of `erm` run, and are the papers'.

Those of the other methods run in the tests of their methods.
"""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, recall_score

from ltbench.data.sources.cifar import Cifar10
from ltbench.metrics.catalogue import metrics_from_counts
from ltbench.models import build_backbone
from ltbench.optim.schedules import MultiStep, epoch_of
from ltbench.records import read_record

CONFIGS = {path.stem: path for path in sorted(Path(__file__).parents[1].glob("configs/*.yaml"))}
LOSSES = ("ce", "cedrw", "ldamdrw", "vs")
RECIPE = re.compile(f"({'|'.join(LOSSES)})(sam)?_(cifar10|cifar100|digits|folder)")
RECIPES = [name for name in CONFIGS if RECIPE.fullmatch(name)]
CIFAR = [name for name in RECIPES if "_cifar" in name]
LARGE = re.compile(r"(ce|cedrw|ldamdrw|vs)(sam)?_(imagenetlt|inat)")

NAMES = {
    *("accuracy", "mean_recall", "hmean_recall", "gmean_recall", "min_recall", "min_coverage"),
    *("min_ht_recall", "many_recall", "medium_recall", "few_recall", "head_recall", "mid_recall"),
    *("tail_recall", "dead_classes", "ece"),
}

# The radii of arXiv 2212.13827's command list, and of its paper for VS.
RADII = {
    **{"cesam_cifar10": 0.1, "cedrwsam_cifar10": 0.5, "ldamdrwsam_cifar10": 0.8},
    **{"cesam_cifar100": 0.2, "cedrwsam_cifar100": 0.8, "ldamdrwsam_cifar100": 0.8},
    **{"vssam_cifar10": 0.5, "vssam_cifar100": 0.8},
}


def read(name):
    return yaml.safe_load(CONFIGS[name].read_text())


@pytest.fixture
def small_cifar(monkeypatch):
    """CIFAR of its own shape but with 100 noisy images a class, the fewest that IF 100 allows."""

    def load(self, split):
        per_class = 100 if split == "train" else 1
        labels = np.arange(self.num_classes).repeat(per_class)
        draw = np.random.default_rng(len(labels))
        self._class_names = [f"class {c}" for c in range(self.num_classes)]
        images = draw.integers(0, 128, (len(labels), 3, 32, 32), dtype=np.uint8)
        return images + (labels % 128).astype(np.uint8)[:, None, None, None], labels

    monkeypatch.setattr(Cifar10, "_load", load)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parser_takes_every_config(name, ltbench):
    """Every class and option in it exists, and the result is a config again."""
    done = ltbench("fit", "--config", CONFIGS[name], "--print_config")
    assert (done.code, done.err) == (0, "")
    assert yaml.safe_load(done.out)["model"]["class_path"].endswith(
        read(name)["model"]["class_path"]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_config_runs_to_its_record(name, ltbench, small_cifar, images, tmp_path):
    words = ["--config", CONFIGS[name], "--trainer.accelerator", "cpu"]
    words += ["--trainer.enable_progress_bar", "false"]
    if name.endswith("_folder"):
        words += ["--data.init_args.root", images]
    short = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2]
    # The network itself is tested elsewhere, so one config with it is enough.
    if name != "vssam_digits":
        short += ["--model.init_args.backbone", "tiny_net"]
    done = ltbench("fit", *words, *short)
    assert done.code == 0, done.err

    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder / "record.json")
    assert (record["status"], record["name"], record["method"]) == ("done", name, "erm")
    assert (record["epochs"], record["steps"]) == (1, 1 if name == "vssam_folder" else 2)
    assert folder.name == f"{name}-{record['job_id'][:8]}"
    selections = ["last"] if "_cifar" in name else ["last", "best"]
    assert list(record["metrics"]) == selections
    for selection in selections:
        metrics = record["metrics"][selection]["test"]
        assert metrics.keys() == NAMES | {"per_class_recall"}
        check_predictions(folder / f"predictions_{selection}.npz", metrics, record["data"])

    # The stored config is complete: alone it names the same job, which is done already.
    again = ltbench("fit", "--config", folder / "config.yaml")
    assert again.code == 0, again.err
    assert f"{folder.name} is done already" in again.out


def check_predictions(path, metrics, data):
    """The stored predictions give the metrics of the record, and scikit-learn's."""
    with np.load(path, allow_pickle=False) as stored:
        label, prediction = stored["label"], stored["prediction"]
        logits, confidence = stored["logits"], stored["confidence"]
        assert np.array_equal(stored["index"], np.arange(data["images"]["test"]))
    assert np.array_equal(prediction, logits.argmax(1))
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(confidence, (softmax / softmax.sum(1, keepdims=True)).max(1), atol=1e-6)

    classes = len(data["class_counts"])
    counts = (
        np.bincount(values, minlength=classes)
        for values in (label[label == prediction], label, prediction)
    )
    sizes = data["class_counts"], data["head_mid_tail"]
    for name, value in metrics_from_counts(*counts, *sizes).items():
        assert metrics[name] == (None if np.isnan(value) else value), name
    recalls = recall_score(label, prediction, labels=range(classes), average=None, zero_division=0)
    assert metrics["per_class_recall"] == pytest.approx(recalls)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(label, prediction))


@pytest.mark.parametrize("name", [n for n in RECIPES if "sam_" in n and n != "vssam_folder"])
def test_pairs_differ_in_the_gradient_rule_alone(name):
    if name == "vssam_digits":
        with_sam, without = read(name), read("ce_digits")
        rule = with_sam["model"]["init_args"].pop("loss_args")
        assert rule == {"gamma": 0.15, "tau": 1.25}
        with_sam["model"]["init_args"]["loss"] = without["model"]["init_args"]["loss"]
    else:
        with_sam, without = read(name), read(name.replace("sam_", "_"))
    rule = with_sam["model"]["init_args"].pop("gradient_rule")
    assert with_sam == without
    assert rule["class_path"] == "SAM"
    assert set(rule["init_args"]) == {"rho"}  # so batch norm, schedule and kind are the defaults
    if name in RADII:
        assert rule["init_args"]["rho"] == RADII[name]


def test_every_recipe_of_the_paper_is_there():
    assert set(CIFAR) == {
        f"{loss}{sam}_{source}"
        for loss in LOSSES
        for sam in ("", "sam")
        for source in ("cifar10", "cifar100")
    }
    assert RADII.keys() == {name for name in CIFAR if "sam_" in name}


@pytest.mark.paper
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_recipes_have_the_constants_of_the_paper(name):
    config = read(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == 200
    assert config["seed_everything"] == 0
    assert model["backbone"] == "resnet32_cifar"
    assert model["optimizer"] == {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4},
    }
    schedule = MultiStep(**model["lr_schedule"]["init_args"])
    assert epoch_of(schedule.warmup, 200) == 5
    starts = [(epoch_of(point, 200), factor) for point, factor in schedule.milestones]
    assert starts == [(160, 0.01), (180, 0.0001)]

    method, source = name.replace("sam_", "_").split("_")
    loss, head, loss_args = {
        "ce": ("cross_entropy_loss", "linear", None),
        "ldam": ("ldam_loss", "cosine", {"max_margin": 0.5, "scale": 30}),
        "vs": (
            "vs_loss",
            "linear",
            {"gamma": 0.15, "tau": 1.25} if source == "cifar10" else {"gamma": 0.05, "tau": 0.75},
        ),
    }[method.removesuffix("drw")]
    assert (model["loss"], model.get("head", "linear"), model.get("loss_args")) == (
        loss,
        head,
        loss_args,
    )
    if method.endswith("drw"):
        assert model["reweighting"]["beta"] == 0.9999
        assert epoch_of(model["reweighting"]["start"], 200) == 160
    else:
        assert "reweighting" not in model

    assert data["source"] == source
    assert (data["profile"], data["imbalance_factor"]) == ("exp", 100)
    assert (data["batch_size"], data["val_fraction"]) == (128, 0.0)
    crop, flip = data["augment"]
    assert crop == {"class_path": "RandomCrop", "init_args": {"padding": 4}}
    assert flip == {"class_path": "HorizontalFlip"}
    assert data.keys() == {
        *("source", "profile", "imbalance_factor", "val_fraction", "batch_size", "augment")
    }


# The radii by step of arXiv 2212.13827's command list, by the epoch that they start in (from 0).
LARGE_RADII = {
    "ldamdrwsam_imagenetlt": [(0, 0.05), (5, 0.1), (60, 0.5)],
    "ldamdrwsam_inat": [(0, 0.05), (5, 0.1), (60, 0.5)],
    "cedrwsam_imagenetlt": [(0, 0.05), (5, 0.1), (60, 0.5)],
    "cedrwsam_inat": [(0, 0.05), (5, 0.1), (75, 0.2)],
}


@pytest.mark.paper
@pytest.mark.parametrize("name", [n for n in CONFIGS if LARGE.fullmatch(n)])
def test_large_recipes_have_the_constants_of_the_paper(name):
    config = read(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    method, source = name.split("_")
    assert (config["trainer"]["max_epochs"], data["batch_size"]) == (90, 256)
    assert model["backbone"] == "resnet50"
    decay = 1e-4 if method.startswith("ldam") and source == "inat" else 2e-4
    assert model["optimizer"] == {
        "class_path": "torch.optim.SGD",
        "init_args": {
            **{"lr": 0.2 if source == "imagenetlt" else 0.1, "momentum": 0.9},
            "weight_decay": decay,
        },
    }
    assert model["lr_schedule"] == "Cosine"
    margins = (
        ("ldam_loss", {"max_margin": 0.3, "scale": 30}, "cosine")
        if method.startswith("ldam")
        else (None, None, None)
    )
    assert tuple(model.get(key) for key in ("loss", "loss_args", "head")) == margins
    if "drw" in method:
        assert model["reweighting"]["beta"] == 0.9999
        assert epoch_of(model["reweighting"]["start"], 90) == 60
    else:
        assert "reweighting" not in model
    if method.endswith("sam"):
        radii = model["gradient_rule"]["init_args"]["rho"]
        assert [(epoch_of(point, 90), rho) for point, rho in radii] == LARGE_RADII[name]
    else:
        assert "gradient_rule" not in model
    flip, jitter = data["augment"]
    assert flip == {"class_path": "HorizontalFlip"}
    strength = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    assert jitter == {"class_path": "ColorJitter", "init_args": strength}
    assert data["decoding"] == {"resize": 256, "random_crop": [0.08, 1.0]}
    assert (data["profile"], data["val_fraction"]) == ("natural", 0.0)


def test_every_large_recipe_of_the_paper_is_there():
    losses = ("ce", "cedrw", "cedrwsam", "ldamdrw", "ldamdrwsam")
    there = {f"{loss}_{source}" for loss in losses for source in ("imagenetlt", "inat")}
    assert {name for name in CONFIGS if LARGE.fullmatch(name)} == there


# Those of ImageNet-100 follow SelMix's code, which has timm's network.
RESNET50 = [
    name
    for name in CONFIGS
    if read(name)["model"]["init_args"].get("backbone") == "resnet50" and "100" not in name
]


@pytest.mark.paper
@pytest.mark.parametrize("name", RESNET50)
def test_branches_of_resnet50_start_as_torchvisions(name):
    """The last batch norm of a branch starts at 1; timm's default is 0."""
    last = last_norms(json.dumps(read(name)["model"]["init_args"]["backbone_args"]))
    assert len(last) == 16
    assert all(bool((weight == 1).all()) for weight in last)


@cache
def last_norms(arguments):
    net = build_backbone("resnet50", 3, **json.loads(arguments))
    return [module.bn3.weight for module in net.modules() if hasattr(module, "bn3")]


@pytest.mark.parametrize("name", CONFIGS)
def test_config_opens_with_a_comment_for_ltbench_list(name):
    first = CONFIGS[name].read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20

"""The configs of FixMatch, CSST and their supervised rows: they run, and are what they claim."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from ltbench.data.sources.cifar import Cifar10
from ltbench.data.sources.stl10 import Stl10
from ltbench.methods.csst import PUBLISHED_BUDGET, update_steps
from ltbench.models import build_backbone
from ltbench.records import read_record

FOLDER = Path(__file__).parents[1] / "configs"
METHODS = ("FixMatch", "CSST")


def read(path):
    return yaml.safe_load(path.read_text())


STRONG = [
    {
        "class_path": "RandAugment",
        "init_args": {"num_ops": 3, "magnitude": None, "space": "fixmatch", "cutout": 0.5},
    }
]
IMAGENET = ("fixmatch_la_imagenet100", "csst_imagenet100")  # a folder, and constants of its own


def belongs(path):
    config = read(path)
    semi = config["data"]["class_path"] == "SemiSupervisedDataModule"
    method = config["model"]["class_path"]
    semi = semi and method in METHODS and path.stem not in IMAGENET
    return semi or path.stem.endswith("_labelled_cifar10")


CONFIGS = {path.stem: read(path) for path in sorted(FOLDER.glob("*.yaml")) if belongs(path)}
FULL = [
    name
    for name in CONFIGS
    if not name.endswith(("digits", "labelled_cifar10")) and "csl" not in name
]


@pytest.fixture
def small_images(monkeypatch):
    """Sets of their own shape, but with 50 noisy images a class."""

    def load(self, split):
        unlabelled = split == "unlabelled"
        labels = np.arange(self.num_classes).repeat(50 if split == "train" else 2)
        draw = np.random.default_rng(len(labels))
        self._class_names = [f"class {c}" for c in range(self.num_classes)]
        side = 96 if self.name == "stl10" else 32
        images = draw.integers(0, 256, (len(labels), 3, side, side), dtype=np.uint8)
        return images, np.full(len(labels), -1) if unlabelled else labels

    monkeypatch.setattr(Cifar10, "_load", load)
    monkeypatch.setattr(Stl10, "_load", load)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_runs_to_its_record(name, ltbench, small_images, tmp_path):
    config = CONFIGS[name]
    words = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1]
    words += ["--model.init_args.backbone", "tiny_net", "--data.init_args.steps_per_epoch", 2]
    if "backbone_args" in config["model"]["init_args"]:
        words += ["--model.init_args.backbone_args", "null"]
    if not name.endswith("digits"):
        small = {"n1": 20, "rho_l": 4, "val_per_class": 5}
        if config["data"]["init_args"]["protocol"]["init_args"]["m1"] is not None:
            small |= {"m1": 20, "rho_u": 4}
        for key, value in small.items():
            words += [f"--data.init_args.protocol.init_args.{key}", value]
    done = ltbench("fit", "--config", FOLDER / f"{name}.yaml", *words)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder / "record.json")
    assert (record["status"], record["name"]) == ("done", name)
    assert record["steps"] == 2
    data = config["data"]["init_args"]
    assert record["images_seen"] == 2 * data["batch_size"] * (1 + data["mu"])
    assert record["data"]["profile"].startswith("ReleasedProtocol(")
    assert np.isfinite(record["metrics"]["last"]["test"]["accuracy"])


@pytest.mark.parametrize("name", IMAGENET)
def test_config_of_a_folder_runs_to_its_record(name, ltbench, make_images, tmp_path):
    for split, size in (("train", 6), ("val", 1), ("test", 1)):
        make_images(tmp_path / f"images/{split}", {f"n{c:02}": size for c in range(10)})
    words = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1]
    words += ["--model.backbone", "tiny_net", "--data.root", tmp_path / "images"]
    words += ["--data.steps_per_epoch", 1, "--data.batch_size", 4, "--data.num_workers", 0]
    words += ["--data.image_size", 16, "--data.decoding.resize", 20]
    words += ["--data.protocol.n1", 3, "--data.protocol.rho_l", 3]
    words += ["--data.protocol.m1", 6, "--data.protocol.rho_u", 3]
    done = ltbench("fit", "--config", FOLDER / f"{name}.yaml", *words)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    data = read_record(folder / "record.json")["data"]
    assert data["images"]["val"] == data["images"]["test"] == 10
    assert (data["class_counts"][0], data["unlabelled_counts"][0]) == (3, 6)


@pytest.mark.paper
def test_the_constants_of_imagenet100():
    rows = [read(FOLDER / f"{name}.yaml") for name in IMAGENET]
    assert rows[0]["data"] == rows[1]["data"]
    protocol = rows[0]["data"]["init_args"]["protocol"]["init_args"]
    assert (protocol["n1"], protocol["m1"], protocol["include_labelled"]) == (433, 866, True)
    for row in rows:
        model, data = row["model"]["init_args"], row["data"]["init_args"]
        assert row["trainer"]["max_epochs"] * data["steps_per_epoch"] == 2**20
        assert (data["batch_size"], data["mu"], data["image_size"]) == (256, 2, 224)
        assert model["optimizer"]["init_args"] == {
            **{"lr": 0.4, "momentum": 0.9, "weight_decay": 3e-4, "nesterov": True}
        }
        assert (model["backbone"], model["lambda_u"]) == ("resnet50", 10)
        assert model["lr_schedule"] == "SlowCosine"
        assert data["augment"] == [{"class_path": "HorizontalFlip"}]
        assert data["decoding"] == {"resize": 256, "random_crop": [0.08, 1.0]}
        assert data["strong_augment"] == STRONG
    assert rows[0]["model"]["init_args"]["p_cutoff"] == 0.7


@pytest.mark.paper
@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet100_has_timms_resnet50(name):
    """Whose branches start at zero, unlike torchvision's."""
    model = read(FOLDER / f"{name}.yaml")["model"]["init_args"]
    net = build_backbone(model["backbone"], 3, **model.get("backbone_args", {}))
    assert not any(module.bn3.weight.any() for module in net.modules() if hasattr(module, "bn3"))


@pytest.mark.paper
@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_the_constants_of_selmix(source):
    config, start = (read(FOLDER / f"{n}_{source}.yaml") for n in ("selmix", "fixmatch_la"))
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["cycle"] * config["trainer"]["max_epochs"] == 10_000
    assert model["optimizer"] == {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 3e-4, "weight_decay": 5e-4},  # and no momentum
    }
    assert (model["backbone_lr"], model["lr_schedule"], data["batch_size"]) == (0.1, "Cosine", 64)
    own = {"cifar10": ("min_recall", 10), "cifar100": ("min_ht_recall", 20)}
    assert (model["objective"], model["sharpness"]) == own[source]
    assert model["init_from"] == {"path": f"runs/fixmatch_la_{source}"}
    assert "backbone" not in model  # that of the start
    for key in ("source", "protocol", "augment"):
        assert data[key] == start["data"]["init_args"][key]
    assert {"checkpoint", "selection"}.isdisjoint(config["trainer"])  # the last epoch is the result


@pytest.mark.paper
@pytest.mark.parametrize("name", FULL)
def test_the_constants_of_the_papers_code(name):
    config = CONFIGS[name]
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] * data["steps_per_epoch"] == 2**20
    assert model["optimizer"]["init_args"] == {
        **{"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    }
    assert (model["lr_schedule"], model["ema_decay"], model["lambda_u"]) == ("SlowCosine", 0.999, 1)
    assert model["backbone_args"] == {"negative_slope": 0.1, "bn_momentum": 0.001}
    # CSST and its baseline FixMatch against SelMix's start.
    of_csst = data["source"] != "stl10" and not name.startswith("fixmatch_la")
    wide = of_csst and data["source"] == "cifar100"
    assert model["backbone"] == ("wrn_28_8" if wide else "wrn_28_2")
    assert (data["batch_size"], data["mu"]) == (64, 4 if of_csst else 2)
    assert data["strong_augment"] == STRONG
    assert [t["class_path"] for t in data["augment"]] == ["HorizontalFlip", "RandomCrop"]
    if name.startswith("csst"):
        steps = update_steps([tuple(pair) for pair in model["update_interval"]], 2**20)
        assert model["omega"] is None  # so that a shorter run keeps the budget
        assert PUBLISHED_BUDGET / len(steps) == pytest.approx(0.1)
        assert (model["threshold"], model["kl_tau"]) == ("kl", 0.05)
    else:
        assert model["p_cutoff"] == 0.95


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "stl10", "digits"])
def test_rows_of_a_set_differ_in_the_loss_alone(source):
    names = [
        f"{method}_{source}" for method in ("fixmatch", "fixmatch_la", "csst", "csst_coverage")
    ]
    own = ("loss", "p_cutoff", "objective", "coverage_target", "update_interval", "omega")
    rows = []
    for name in names:
        row = yaml.safe_load(yaml.safe_dump(CONFIGS[name]))
        del row["model"]["class_path"]
        for key in (*own, "threshold", "kl_tau", "lambda_init"):
            row["model"]["init_args"].pop(key, None)
        if source.startswith("cifar"):  # SelMix's start has a network and a mu of its own
            del row["model"]["init_args"]["backbone"], row["data"]["init_args"]["mu"]
        rows.append(row)
    assert all(row == rows[0] for row in rows)
    assert CONFIGS[names[1]]["model"]["init_args"]["loss"] == "logit_adjusted_loss"


def test_supervised_rows_have_the_labelled_images_of_csst():
    data = CONFIGS["csst_cifar10"]["data"]["init_args"]
    for name in ("ce_labelled_cifar10", "la_labelled_cifar10", "csl_cifar10"):
        ours = CONFIGS[name]["data"]["init_args"]
        assert (ours["protocol"], ours["augment"]) == (data["protocol"], data["augment"])
        assert ours["mu"] == 0

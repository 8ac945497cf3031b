"""PaCo: exact resume, several ranks, shipped configs."""

from pathlib import Path

import pytest
import torch
import yaml
from support import run_script

from ltbench.methods.paco import PaCo
from ltbench.optim.schedules import epoch_of

CONFIG = """
seed_everything: 3
trainer: {max_epochs: 4, accelerator: cpu, devices: 1, enable_progress_bar: false}
model:
  class_path: PaCo
  init_args: {backbone: tiny_net, queue: 50, dim: 8, gradient_rule: SAM}
data:
  class_path: LongTailDataModule
  init_args:
    imbalance_factor: 10
    largest: 60
    batch_size: 32
    augment: [{class_path: RandomCrop, init_args: {padding: 1}}]
    views:
      key:
        - class_path: RandomCrop
          init_args: {padding: 2}
"""


@pytest.mark.parametrize("step", [9, 17])
def test_a_resumed_run_is_the_whole_one(step, ltbench, tmp_path, monkeypatch):
    """Bit for bit: the average, the queue and its place are part of the checkpoint."""
    config = tmp_path / "paco.yaml"
    config.write_text(CONFIG)
    (tmp_path / "whole").mkdir()
    assert ltbench("fit", "--config", config, cwd=tmp_path / "whole").code == 0
    original = PaCo.on_train_batch_start

    def stop(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PaCo, "on_train_batch_start", stop)
        assert ltbench("fit", "--config", config).code == 130
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    assert "Going on from" in done.out
    one, other = (
        torch.load(next(home.glob("runs/*/checkpoints/last.ckpt")), weights_only=True)
        for home in (tmp_path / "whole", tmp_path)
    )
    assert one["global_step"] == other["global_step"]
    assert "queue.place" in one["state_dict"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
import support, torch
from lightning.pytorch.callbacks import Callback
from pathlib import Path
from ltbench.cli import main

class Keep(Callback):
    def on_train_end(self, trainer, module):
        name = "rank%d_of_%d.pt" % (trainer.global_rank, trainer.world_size)
        torch.save(module.state_dict(), Path(name))

if __name__ == "__main__":
    main()
"""


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["Plain", "SAM"])
def test_two_ranks_train_what_one_trains(rule, tmp_path):
    """Without batch norm and augmentation a step of two ranks is that of one, to rounding."""
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    (tmp_path / "ranks.py").write_text(script)
    config = yaml.safe_load(CONFIG)
    config["model"]["init_args"] |= {"backbone": "flat_net", "queue": 64, "gradient_rule": rule}
    config["data"]["init_args"] |= {"augment": [], "views": {"key": []}, "val_fraction": 0.2}
    config["trainer"] |= {"limit_train_batches": 5, "max_epochs": 2}
    (tmp_path / "paco.yaml").write_text(yaml.safe_dump(config))
    for ranks, strategy in ((1, "auto"), (2, "ddp")):
        options = ["--trainer.devices", str(ranks), "--trainer.strategy", strategy]
        words = ["fit", "--config", "paco.yaml", "--trainer.callbacks+=ranks.Keep", *options]
        run_script(tmp_path / "ranks.py", *words, "--name", f"of_{ranks}")
    first, second, alone = (
        torch.load(tmp_path / f"{name}.pt") for name in ("rank0_of_2", "rank1_of_2", "rank0_of_1")
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if name.startswith("queue."):
            alone[name], value = alone[name].sort(0).values, value.sort(0).values
        assert torch.allclose(value.float(), alone[name].float(), atol=1e-5), name


CONFIGS = Path(__file__).parents[2] / "configs"


CIFAR = {"alpha": 0.01, "temperature": 0.05, "queue": 1024, "dim": 32}


LARGE = {"alpha": 0.05, "temperature": 0.2, "queue": 8192, "dim": 128}


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


@pytest.mark.paper
@pytest.mark.parametrize(
    ("name", "backbone", "constants", "rate", "decay"),
    [
        ("cifar10", "resnet32_cifar", CIFAR, 0.05, 5e-4),
        ("cifar100", "resnet32_cifar", CIFAR, 0.05, 5e-4),
        ("imagenetlt", "resnet50", LARGE, 0.02, 5e-4),
        ("inat", "resnet50", LARGE, 0.02, 1e-4),
    ],
)
def test_recipes_have_the_constants_of_the_paper(name, backbone, constants, rate, decay):
    config = read(f"paco_{name}")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == 400
    assert (model["backbone"], data["batch_size"]) == (backbone, 128)
    assert {key: model[key] for key in constants} == constants
    assert (model["momentum"], model.get("beta", 1.0)) == (0.999, 1.0)
    assert model["optimizer"]["init_args"] == {"lr": rate, "momentum": 0.9, "weight_decay": decay}
    kinds = [transform["class_path"] for transform in data["augment"]]
    schedule = model["lr_schedule"]["init_args"]
    assert epoch_of(schedule["warmup"], 400) == 10
    if constants is CIFAR:
        changes = [(epoch_of(point, 400), factor) for point, factor in schedule["milestones"]]
        assert changes == [(320, 0.1), (360, 0.01)]
        assert kinds == ["RandomCrop", "HorizontalFlip", "AutoAugment", "Cutout"]
        assert data["views"]["key"][0]["init_args"]["scale"] == [0.2, 1.0]
        jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
    else:
        assert model["lr_schedule"]["class_path"] == "Cosine"
        assert kinds == ["HorizontalFlip", "ColorJitter", "RandAugment"]
        jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
        assert data["augment"][1]["init_args"] == jitter
    assert [(each["class_path"], each.get("init_args")) for each in data["views"]["key"][-3:]] == [
        ("ColorJitter", jitter),
        ("Grayscale", {"p": 0.2}),
        ("GaussianBlur", {"sigma": [0.1, 2.0], "p": 0.5}),
    ]
    assert data["drop_last"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenetlt", "inat"])
def test_pairs_with_and_without_sam_differ_in_the_gradient_rule_alone(name):
    """The radii of LDAM's teachers, arXiv 2212.13827: none is published for PaCo."""
    with_sam, without = read(f"pacosam_{name}"), read(f"paco_{name}")
    rule = with_sam["model"]["init_args"].pop("gradient_rule")
    assert rule == read(f"ldamdrwsam_{name}")["model"]["init_args"]["gradient_rule"]
    assert with_sam == without

"""CSST: exact resume, and what is refused."""

import math

import numpy as np
import pytest
import torch
import yaml
from semi_digits import build
from support import fit

from ltbench.data.protocols import ReleasedProtocol
from ltbench.errors import UserError
from ltbench.methods.csst import (
    CSST,
)
from ltbench.records import read_record

CONFIG = """
seed_everything: 3
trainer:
  max_epochs: 3
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
model:
  class_path: CSST
  init_args:
    objective: hmean_recall_coverage
    update_interval: 2
    backbone: tiny_net
    ema_decay: 0.9
data:
  class_path: SemiSupervisedDataModule
  init_args:
    source: digits
    protocol:
      class_path: ReleasedProtocol
      init_args: {n1: 40, rho_l: 10, m1: 60, rho_u: 10, val_per_class: 10}
    batch_size: 8
    mu: 2
    steps_per_epoch: 5
    oracle: true
    augment:
      - class_path: RandomCrop
        init_args: {padding: 1}
    strong_augment:
      - class_path: RandAugment
        init_args: {num_ops: 3, magnitude: null, space: fixmatch, cutout: 0.5}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "csst_tiny.yaml"
    path.write_text(CONFIG)
    return path


def test_a_resumed_run_equals_one_that_was_not_stopped(ltbench, config, tmp_path, monkeypatch):
    straight = tmp_path / "straight"
    straight.mkdir()
    done = ltbench("fit", "--config", config, cwd=straight)
    assert done.code == 0, done.err
    with monkeypatch.context() as patch:
        after = CSST.after_step

        def stop(self, step):
            if self.trainer.global_step == 8:
                raise KeyboardInterrupt
            after(self, step)

        patch.setattr(CSST, "after_step", stop)
        assert ltbench("fit", "--config", config).code == 130
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    assert "Going on from" in done.out

    (one,), (other,) = ((place / "runs").iterdir() for place in (straight, tmp_path))
    assert one.name == other.name
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (read_record(folder / "record.json") for folder in (one, other))
    assert first["metrics"] == second["metrics"]
    assert first["images_seen"] == second["images_seen"] == 15 * 24
    a, b = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (one, other))
    for key in ("state_dict", "current_model_state"):
        assert {"multipliers", "gain"} <= a[key].keys()
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
    with np.load(one / "traces.npz") as a, np.load(other / "traces.npz") as b:
        assert a["lambda"].shape == (3, 10)
        assert {"gain_diagonal", "kept_share", "kept_accuracy"} <= set(a.files)
        assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in a.files)
    assert first["method"] == "csst"
    assert first["data"]["oracle"] is True
    assert first["weights"] == "averaged"


def test_a_run_without_held_out_images():
    model, data = build(CSST, data={"protocol": ReleasedProtocol(40, 10, 60, 10, 0)})
    with pytest.raises(UserError, match="validation images"):
        fit(model, data, epochs=2)


def test_a_class_missing_from_the_held_out_set(ltbench, config, tmp_path, make_images):
    make_images(tmp_path / "shapes/train", {"ant": 20, "bee": 20, "cat": 20})
    make_images(tmp_path / "shapes/val", {"ant": 4, "cat": 4})
    settings = yaml.safe_load(CONFIG)
    settings["model"]["init_args"]["objective"] = "min_recall"
    settings["data"]["init_args"] |= {
        "source": "folder",
        "root": str(tmp_path / "shapes"),
        "protocol": {"class_path": "NaturalProtocol"},
    }
    config.write_text(yaml.safe_dump(settings))
    done = ltbench("fit", "--config", config)
    assert done.code == 2
    assert "bee" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "min_recal"}, "min_recall"),
        ({"objective": "mean_recall_coverage", "coverage_target": 1.2}, "coverage_target"),
        ({"lambda_init": 0.5}, "lambda_init"),
        ({"objective": "mean_recall_coverage", "lambda_init": -1.0}, "lambda_init"),
        ({"omega": 0.0}, "omega"),
        ({"budget": -1.0}, "budget"),
        ({"kl_tau": -0.1}, "kl_tau"),
        ({"kl_tau": math.nan}, "kl_tau"),
        ({"omega": math.nan}, "omega"),
        ({"omega": math.inf}, "omega"),
        ({"objective": "mean_recall_coverage", "lambda_init": math.nan}, "lambda_init"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        build(CSST, **options)

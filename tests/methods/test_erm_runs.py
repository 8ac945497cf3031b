"""ERM: evaluation, exact resume, and what is refused."""

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from erm_digits import build, evaluate, train
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from support import fit
from torch.utils.data import DataLoader, TensorDataset

from ltbench import records
from ltbench.errors import UserError
from ltbench.methods.erm import ERM


def test_validation_metrics_are_those_of_scikit_learn(digits_run):
    _, data = build()
    data.setup()
    saved = torch.load(digits_run.last, weights_only=True)["state_dict"]
    predicted, labels = evaluate(saved, data, "val")
    row = pd.read_csv(digits_run.folder / "metrics.csv").iloc[-1]
    assert row["val/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert row["val/mean_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    recalls = recall_score(labels, predicted, average=None, labels=range(10))
    assert row["val/min_recall"] == pytest.approx(recalls.min())
    assert row["val/dead_classes"] == (recalls == 0).sum()


def test_the_test_set_can_be_watched_but_chooses_nothing():
    model, data = build(data={"watch_test": True})
    trainer = fit(model, data, epochs=2)
    watched = trainer.callback_metrics["test_watched/accuracy"]
    assert "val/accuracy" in trainer.callback_metrics
    (result,) = trainer.test(model, data, verbose=False)
    assert result["test/accuracy"] == watched.item()


def test_the_data_must_be_ours_and_of_the_same_classes():
    model, data = build()
    images = TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="LongTailDataModule"):
        trainer.test(model, DataLoader(images), verbose=False)
    with pytest.raises(UserError, match="num_classes"):
        fit(ERM(3, 1, backbone="tiny_net"), data)


def test_ldam_needs_cosines():
    with pytest.raises(UserError, match="head: cosine"):
        train(loss="ldam_loss")


RESUMED = """
model:
  init_args:
    backbone_args: {drop_rate: 0.3}
    gradient_rule: {class_path: SAM, init_args: {rho: 0.1}}
    reweighting: {start: 0.5}
    lr_schedule: {class_path: Cosine, init_args: {warmup: 1}}
    mixup: 0.4
    cutmix: 1.0
    ema_decay: 0.9
"""


def stop_at(patch, step, exception):
    original = ERM.on_train_batch_start

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise exception
        original(self, batch, batch_idx)

    patch.setattr(ERM, "on_train_batch_start", hook)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run of ``RESUMED`` that nothing interrupts: its folder and the words that name it."""
    return tmp_path_factory.mktemp("straight")


@pytest.mark.parametrize("step", [3, 14, 17])
def test_a_resumed_run_equals_one_that_was_not_stopped(
    step, ltbench, tiny, straight, tmp_path, monkeypatch
):
    """Bit for bit, whether it is stopped in epoch 1 (nothing saved yet) or in the third."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(RESUMED)
    words = ["fit", "--config", tiny, "--config", overlay]
    if not (straight / "runs").exists():
        done = ltbench(*words, cwd=straight)
        assert done.code == 0, done.err
    with monkeypatch.context() as patch:
        stop_at(patch, step, KeyboardInterrupt())
        assert ltbench(*words).code == 130
    done = ltbench(*words)
    assert done.code == 0, done.err
    assert ("Going on from" in done.out) == (step > 6)

    (one,), (other,) = ((place / "runs").iterdir() for place in (straight, tmp_path))
    assert one.name == other.name
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (records.read_record(folder / "record.json") for folder in (one, other))
    assert first["metrics"] == second["metrics"]
    for key in ("epochs", "steps", "images_seen", "data", "config", "job_id"):
        assert first[key] == second[key], key
    for selection in ("last", "best"):
        for key in ("logits", "prediction"):
            a, b = (np.load(f / f"predictions_{selection}.npz")[key] for f in (one, other))
            assert np.array_equal(a, b)
        a, b = (
            torch.load(f / f"checkpoints/{selection}.ckpt", weights_only=True) for f in (one, other)
        )
        for key in ("state_dict", "current_model_state"):
            assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
        assert a["global_step"] == b["global_step"]
        states = [c["optimizer_states"][0]["state"] for c in (a, b)]
        assert len(states[0]) == 5  # every parameter has its momentum, SAM or not
        for index, state in states[0].items():
            assert torch.equal(state["momentum_buffer"], states[1][index]["momentum_buffer"])
            assert state["momentum_buffer"].abs().sum() > 0


@pytest.mark.parametrize("val_fraction", [0, 0.2])
def test_a_loss_that_is_not_finite_stops_the_run(val_fraction, ltbench, tiny, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    schedule = {
        "class_path": "MultiStep",
        "init_args": {"warmup": 0, "milestones": [[2, 1e30]]},
    }
    overlay.write_text(yaml.safe_dump({"model": {"init_args": {"lr_schedule": schedule}}}))
    words = ["--config", tiny, "--config", overlay, "--data.init_args.val_fraction", val_fraction]
    done = ltbench("fit", *words)
    assert done.code == 2
    assert "epoch 2" in done.err
    assert "not finite" in done.err
    assert len(done.err.splitlines()) <= 3
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert record["status"] == "failed"
    assert "not finite" in record["cause"]
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert len(pd.read_csv(folder / "metrics.csv")) >= 2

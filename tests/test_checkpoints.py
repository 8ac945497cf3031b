"""Evaluation and prediction from a checkpoint: nothing but its state is used."""

import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from support import columns

from ltbench import records
from ltbench.methods.erm import ERM


class OtherMethod(ERM):
    """Another class with the same arguments."""


@pytest.fixture
def folder_run(ltbench, of_folder, tmp_path):
    """A classifier of the folder of images: the words that name its config and checkpoint."""
    done = ltbench("fit", "--config", of_folder, "--trainer.max_epochs", 8)
    assert done.code == 0, done.err
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    return ["--config", of_folder, "--ckpt_path", last]


# --- evaluation ---


def test_test_prints_what_the_record_says(ltbench, digits_run):
    before = {path: path.stat().st_mtime_ns for path in digits_run.folder.rglob("*")}
    record = records.read_record(digits_run.folder / "record.json")
    for selection in ("last", "best"):
        path = getattr(digits_run, selection)
        done = ltbench("test", "--config", digits_run.config, "--ckpt_path", path)
        assert done.code == 0, done.err
        metrics = record["metrics"][selection]["test"]
        rows = columns(done.out)
        assert rows["accuracy"] == [f"{100 * metrics['accuracy']:.1f}"]
        assert rows["H-mean recall"] == [f"{100 * metrics['hmean_recall']:.1f}"]
        worst = np.argmin(metrics["per_class_recall"])
        assert rows["class with the min recall"] == [str(worst)]
    assert {path: path.stat().st_mtime_ns for path in digits_run.folder.rglob("*")} == before


def test_validate_prints_the_metrics(ltbench, digits_run):
    done = ltbench("validate", "--config", digits_run.config, "--ckpt_path", digits_run.last)
    assert done.code == 0, done.err
    assert "hmean_recall" in done.out or "H-mean" in done.out


def test_validate_without_a_validation_split(refused, digits_run):
    words = ["--config", digits_run.config, "--ckpt_path", digits_run.last]
    assert "val_fraction" in refused("validate", *words, "--data.init_args.val_fraction", 0)


OTHERS = {
    "loss": (["--model.init_args.loss", "focal_loss"], "loss: checkpoint 'cross_entropy_loss'"),
    "rule": (["--model.init_args.gradient_rule", "SAM"], "gradient_rule"),
    "class": (["--model", "OtherMethod"], "class_path"),
}


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
@pytest.mark.parametrize(("words", "says"), OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_replaces_nothing(
    command, words, says, refused, digits_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("LTBENCH_TRUST", __name__)
    if command == "predict":
        words = [*words, "--data.predict_folder", tmp_path]
    told = refused(command, "--config", digits_run.config, *words, "--ckpt_path", digits_run.last)
    assert says in told
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_a_checkpoint_of_other_classes(refused, digits_run, of_folder):
    told = refused("test", "--config", of_folder, "--ckpt_path", digits_run.last)
    assert "num_classes: checkpoint 10, config 3" in told


def test_a_checkpoint_of_as_many_other_classes(refused, folder_run, images):
    for split in ("train", "test"):
        (images / split / "bee").rename(images / split / "wasp")
    assert "(ant, bee, cat, ...)" in refused("test", *folder_run)


@pytest.mark.parametrize("command", ["validate", "fit"])
def test_a_checkpoint_of_other_training_images(command, refused, digits_run):
    """They may be in this validation set; the test set is another matter."""
    words = ["--config", digits_run.config, "--data.init_args.subset_seed", 1]
    assert "other images" in refused(command, *words, "--ckpt_path", digits_run.last)


def test_a_checkpoint_is_tested_on_any_test_set_of_its_classes(ltbench, digits_run):
    words = ["--config", digits_run.config, "--data.init_args.subset_seed", 1]
    done = ltbench("test", *words, "--ckpt_path", digits_run.last)
    assert done.code == 0, done.err


def test_the_config_wins_over_the_checkpoint_where_they_may_differ(ltbench, digits_run):
    words = ["--config", digits_run.config, "--ckpt_path", digits_run.last]
    done = ltbench("test", *words, "--data.init_args.eval_batch_size", 7)
    assert done.code == 0, done.err
    metrics = records.read_record(digits_run.folder / "record.json")["metrics"]["last"]["test"]
    assert columns(done.out)["accuracy"] == [f"{100 * metrics['accuracy']:.1f}"]


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_checkpoint_must_be_given_and_exist(command, refused, digits_run):
    assert "--ckpt_path" in refused(command, "--config", digits_run.config)
    told = refused(command, "--config", digits_run.config, "--ckpt_path", "nowhere.ckpt")
    assert "nowhere.ckpt" in told


def test_fit_from_a_missing_checkpoint(refused, tiny):
    assert "nowhere.ckpt" in refused("fit", "--config", tiny, "--ckpt_path", "nowhere.ckpt")


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize("kind", ["torch", "pickle", "extra"])
def test_a_malicious_checkpoint_is_refused_unopened(command, kind, refused, digits_run, tmp_path):
    bad, trace = tmp_path / "bad.ckpt", tmp_path / "trace"
    if kind == "pickle":
        bad.write_bytes(pickle.dumps({"state_dict": Evil(trace)}))
    else:
        found = torch.load(digits_run.last, weights_only=True) if kind == "extra" else {}
        torch.save({**found, "more": Evil(trace)}, bad)
    told = refused(command, "--config", digits_run.config, "--ckpt_path", bad)
    assert "bad.ckpt" in told
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "foreign", "weights"])
def test_a_damaged_or_foreign_checkpoint(kind, refused, digits_run, tmp_path):
    bad = tmp_path / "bad.ckpt"
    whole = digits_run.last.read_bytes()
    if kind in ("foreign", "weights"):
        weights = torch.load(digits_run.last, weights_only=True)["state_dict"]
        torch.save({"state_dict": weights} if kind == "foreign" else weights, bad)
    else:
        bad.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[kind])
    assert "bad.ckpt" in refused("test", "--config", digits_run.config, "--ckpt_path", bad)


# --- prediction ---


def test_predict_writes_a_row_an_image(ltbench, folder_run, images, make_images, tmp_path):
    make_images(tmp_path / "new", {"ant": 3, "bee": 2}, size=30, seed=5)
    words = ["--data.predict_folder", tmp_path / "new", "--output", "out/rows.csv"]
    done = ltbench("predict", *folder_run, *words)
    assert done.code == 0, done.err
    assert "5 images" in done.out
    rows = pd.read_csv(tmp_path / "out/rows.csv")
    assert rows["image"].tolist() == [str(p) for p in sorted((tmp_path / "new").rglob("*.png"))]
    assert set(rows["class"]) <= {"ant", "bee", "cat"}
    assert (rows["class"] == rows["top1"]).all()
    assert (rows["confidence"] == rows["top1_confidence"]).all()
    top = rows[["top1_confidence", "top2_confidence", "top3_confidence"]]
    assert np.allclose(top.sum(axis=1), 1, atol=1e-5)
    assert (top.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert "top4" not in rows
    assert (rows["class"][:3] == "ant").all()  # the colours are far apart

    # The same rows in any batch size, and one table whatever the devices.
    words = [*words[:2], "--data.eval_batch_size", 2, "--trainer.devices", 2]
    again = ltbench("predict", *folder_run, *words)
    assert again.code == 0, again.err
    assert pd.read_csv(tmp_path / "predictions.csv")["class"].equals(rows["class"])


def test_predict_warns_of_a_run_that_is_not_finished(ltbench, folder_run, make_images, tmp_path):
    make_images(tmp_path / "new", {"": 2}, size=30)
    (path,) = tmp_path.glob("runs/*/record.json")
    path.write_text(path.read_text().replace('"status": "done"', '"status": "interrupted"'))
    with pytest.warns(UserWarning, match=r"last.ckpt .* not finished \(status: interrupted\)"):
        done = ltbench("predict", *folder_run, "--data.predict_folder", tmp_path / "new")
    assert done.code == 0, done.err


def test_predict_refuses_what_it_cannot_read(refused, folder_run, tmp_path):
    assert "--data.predict_folder" in refused("predict", *folder_run)
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in refused("predict", *folder_run, "--data.predict_folder", nowhere)
    bad = tmp_path / "new" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    assert str(bad) in refused("predict", *folder_run, "--data.predict_folder", bad.parent)
    assert not (tmp_path / "predictions.csv").exists()

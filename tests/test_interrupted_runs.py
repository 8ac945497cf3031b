"""A run that is interrupted, crashes or finds the disk full: nothing finished is ever lost."""

import errno
import io
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from support import only_run

from ltbench import records
from ltbench.methods.erm import ERM


def stop_at(monkeypatch, step, exception):
    """Raise in the hook before a training step."""
    original = ERM.on_train_batch_start

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise exception
        original(self, batch, batch_idx)

    monkeypatch.setattr(ERM, "on_train_batch_start", hook)


def test_ctrl_c_keeps_what_is_done(ltbench, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 15, KeyboardInterrupt())
        done = ltbench("fit", "--config", tiny)
    assert done.code == 130
    assert "same command" in done.err
    assert len(done.err.strip().splitlines()) <= 3
    assert "Traceback" not in done.err
    folder = only_run(tmp_path)
    record = records.read_record(folder / "record.json")
    assert record["status"] == "interrupted"
    assert record["epochs"] == 2
    assert len(pd.read_csv(folder / "metrics.csv")) == 2
    assert (folder / "checkpoints/last.ckpt").exists()

    again = ltbench("fit", "--config", tiny)
    assert again.code == 0
    assert "Going on from" in again.out
    record = records.read_record(folder / "record.json")
    assert (record["status"], record["epochs"]) == ("done", 4)


def test_ctrl_c_while_testing(ltbench, tiny, tmp_path, monkeypatch):
    def interrupt(self, batch, batch_idx):
        raise KeyboardInterrupt

    words = ["fit", "--config", tiny, "--trainer.max_epochs", 1]
    with monkeypatch.context() as patch:
        patch.setattr(ERM, "test_step", interrupt)
        done = ltbench(*words)
    assert done.code == 130
    assert "same command" in done.err
    path = only_run(tmp_path) / "record.json"
    record = records.read_record(path)
    assert (record["status"], record["epochs"]) == ("interrupted", 1)
    assert ltbench(*words).code == 0
    record = records.read_record(path)
    assert (record["status"], record["epochs"], record["steps"]) == ("done", 1, 7)
    assert {name: "test" in found for name, found in record["metrics"].items()} == {
        "last": True,
        "best": True,
    }


def test_a_crash_is_told_and_survived(ltbench, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 8, RuntimeError("device lost"))
        with pytest.raises(RuntimeError, match="device lost"):
            ltbench("fit", "--config", tiny)
    record = records.read_record(only_run(tmp_path) / "record.json")
    assert (record["status"], record["epochs"]) == ("failed", 1)
    assert record["cause"] == "RuntimeError: device lost"
    assert ltbench("fit", "--config", tiny).code == 0


def test_a_refused_command_changes_nothing_of_an_interrupted_run(
    ltbench, refused, tiny, digits_run, tmp_path, monkeypatch
):
    words = ["fit", "--config", tiny, "--model.init_args.loss", "focal_loss"]
    with monkeypatch.context() as patch:
        stop_at(patch, 15, KeyboardInterrupt())
        ltbench(*words)
    files = {path: path.read_bytes() for path in only_run(tmp_path).rglob("*") if path.is_file()}
    refused(*words, "--ckpt_path", digits_run.last)
    after = {path: path.read_bytes() for path in files}
    assert [str(path) for path in files if after[path] != files[path]] == []


def test_a_run_folder_can_be_moved_and_gone_on_with(ltbench, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 20, KeyboardInterrupt())
        ltbench("fit", "--config", tiny)
    whole = tmp_path / "whole"
    whole.mkdir()
    ltbench("fit", "--config", tiny, cwd=whole)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / "runs", elsewhere / "runs")
    done = ltbench("fit", "--config", tiny, cwd=elsewhere)
    assert done.code == 0, done.err
    moved, straight = (records.read_record(only_run(p) / "record.json") for p in (elsewhere, whole))
    assert moved["metrics"] == straight["metrics"]


@pytest.mark.parametrize(
    ("name", "times"),
    [("record.json", 3), ("metrics.csv", 2), ("last.ckpt", 1), ("best.ckpt", 0), ("_best.npz", 0)],
)
def test_full_disk(name, times, ltbench, tiny, tmp_path, monkeypatch):
    """After ``times`` good writes of a file, nothing at all can be written any more."""
    original, opened, full = Path.open, [], []

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_(self, mode="r", *args, **options):
        if self.name.endswith(".part"):
            opened.extend([self] * (name in self.name))
            full.extend([True] * (len(opened) > times))
            if full:
                self.touch()
                return Full()
        return original(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        done = ltbench("fit", "--config", tiny)
    check_full_disk(done, tmp_path)
    saved = (only_run(tmp_path) / "checkpoints/last.ckpt").exists()
    again = ltbench("fit", "--config", tiny)
    assert again.code == 0, again.err
    assert ("Going on from" in again.out) == saved


def check_full_disk(done, tmp_path):
    """A message and a code; what was written before is whole, and there is no litter."""
    assert done.code == 1
    assert f"disk is full while writing {Path('runs')}" in done.err
    assert len(done.err.splitlines()) <= 3
    assert "Traceback" not in done.err
    folder = only_run(tmp_path)
    assert not list(folder.rglob("*.part"))
    assert records.read_record(folder / "record.json")["status"] == "running"
    for path in folder.glob("checkpoints/*"):
        torch.load(path, weights_only=True)
    assert (folder / "config.yaml").read_text().startswith("seed_everything")

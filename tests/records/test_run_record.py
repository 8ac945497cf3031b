"""What a run leaves behind says the truth, at any moment of it."""

import io
import math
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from ltbench import records
from ltbench.errors import UserError
from ltbench.methods.erm import ERM
from ltbench.metrics.catalogue import METRICS
from ltbench.records import RunFolder, schema
from ltbench.runs.callbacks import run_record
from ltbench.runs.callbacks.run_record import RunRecord, device_name, peak_memory
from ltbench.runs.context import RunContext
from ltbench.runs.result_table import result_table


@pytest.fixture(scope="module")
def record(digits_run):
    return records.read_record(digits_run.folder / "record.json")


@pytest.fixture(scope="module")
def curves(digits_run):
    return pd.read_csv(digits_run.folder / "metrics.csv")


# --- one finished run ---


def test_record_has_every_part_of_the_schema(record):
    assert tuple(record) == schema.PARTS
    assert None not in (value for name, value in record.items() if name != "cause")


def test_record_counts_what_was_done(record, digits_run):
    assert (record["status"], record["cause"], record["schema"]) == ("done", None, 1)
    assert record["epochs"] == 4
    assert record["images_seen"] == 4 * record["data"]["images"]["train"]
    assert record["steps"] == 4 * math.ceil(record["data"]["images"]["train"] / 32)
    weights = torch.load(digits_run.last, weights_only=True)["state_dict"]
    assert (
        record["parameters"]
        == sum(
            value.numel()
            for name, value in weights.items()
            if name.startswith(("net.conv", "net.fc"))
        )
        + 2 * 16
    )
    assert (record["seed"], record["world_size"], record["batch_size"]) == (3, 1, 32)
    assert (record["precision"], record["weights"]) == ("32-true", "raw")
    assert record["deviations"] == [*ERM.paper.deviations][:1]  # it has neither SAM nor focal loss
    assert (record["method"], record["dataset"], record["name"]) == ("erm", "digits", "tiny")
    assert 0 < record["wall_seconds"] < 600
    assert record["peak_memory_bytes"] > 1e7


def test_record_names_what_was_trained(record, digits_run):
    assert record["config"] == yaml.safe_load((digits_run.folder / "config.yaml").read_text())
    assert record["config"]["model"]["init_args"]["backbone"] == "tiny_net"
    assert digits_run.folder.name == f"tiny-{record['job_id'][:8]}"
    assert sum(record["data"]["class_counts"]) == record["data"]["images"]["train"]


def test_curves_have_a_row_an_epoch(curves, record):
    assert curves["epoch"].tolist() == [0, 1, 2, 3]
    assert curves["step"].tolist() == [record["steps"] // 4 * e for e in (1, 2, 3, 4)]
    assert curves["train/loss"].notna().all()
    assert curves["val/hmean_recall"].notna().all()
    assert not [name for name in curves if name.endswith(("_step", "_epoch"))]


def test_last_and_best_say_their_epoch_and_validation(curves, record, digits_run):
    best = curves["val/mean_recall"].to_numpy()
    epochs = {"last": 3, "best": int(best.argmax())}
    for selection, epoch in epochs.items():
        chosen = record["metrics"][selection]
        assert chosen["epoch"] == epoch
        assert chosen["val"]["mean_recall"] == pytest.approx(best[epoch], rel=1e-12)
        checkpoint = torch.load(getattr(digits_run, selection), weights_only=True)
        assert checkpoint["epoch"] == epoch


# --- while it runs, and when it is resumed ---


def test_record_is_true_while_the_run_goes_on(ltbench, tiny, tmp_path, monkeypatch):
    seen = []
    original = ERM.on_train_epoch_start

    def look(self):
        (path,) = tmp_path.glob("runs/*/record.json")
        record_now = records.read_record(path)
        seen.append(
            (record_now["status"], record_now["epochs"], record_now["steps"], record_now["metrics"])
        )
        original(self)

    monkeypatch.setattr(ERM, "on_train_epoch_start", look)
    words = ["--trainer.max_epochs", 3, "--trainer.check_val_every_n_epoch", 2]
    done = ltbench("fit", "--config", tiny, *words)
    assert done.code == 0, done.err
    steps = seen[1][2]
    assert seen == [("running", e, e * steps, {}) for e in range(3)]

    # Only the second epoch was validated; what it measured is not repeated in the third.
    (path,) = tmp_path.glob("runs/*/metrics.csv")
    curves = pd.read_csv(path)
    assert curves["val/accuracy"].notna().tolist() == [False, True, False]
    assert curves["train/loss"].notna().all()
    record = records.read_record(path.parent / "record.json")
    assert record["metrics"]["best"]["epoch"] == 1
    assert record["metrics"]["last"]["epoch"] == 2


def of_run(folder, job_id):
    return RunContext("run", job_id, RunFolder(folder), config={}, starts={}, made_from={})


def test_what_is_remembered_over_a_resume(tmp_path, monkeypatch):
    clock = iter([100.0, 107.0, 200.0, 205.0])
    monkeypatch.setattr(run_record.time, "monotonic", lambda: next(clock))
    for name in ("_write", "_require_own_batch_size"):
        monkeypatch.setattr(RunRecord, name, lambda *args: None)
    trainer = SimpleNamespace(is_global_zero=False, world_size=2)
    batch = {"index": torch.zeros(8), "unlabelled": {"index": torch.zeros(3), "weak": None}}
    first = RunRecord(of_run(tmp_path, "1"), None)
    first.on_train_start(trainer, None)
    first.on_train_batch_end(trainer, None, None, batch, 0)
    first.history.append({"epoch": 0})
    state = first.state_dict()
    assert state == {
        **{"history": [{"epoch": 0}], "images_seen": 22, "seconds": 7.0, "traces": {}},
        "job_id": "1",
    }

    second = RunRecord(of_run(tmp_path, "1"), None)
    second.load_state_dict(state)
    second.on_train_start(trainer, None)
    second.on_train_batch_end(trainer, None, None, batch, 0)
    assert second.state_dict()["images_seen"] == 44
    assert second.history == [{"epoch": 0}]
    with pytest.raises(UserError, match=r"run 1.* 2"):
        RunRecord(of_run(tmp_path, "2"), None).load_state_dict(state)


class Traced(ERM):
    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        if self.current_epoch != 1:
            self.traces["lambda"] = torch.full((2,), float(self.current_epoch))


def test_traces_are_stacked_by_epoch_and_survive_a_resume(ltbench, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_TRUST", __name__)
    words = ["--config", tiny, "--model", f"{__name__}.Traced", "--model.backbone", "tiny_net"]
    assert ltbench("fit", *words, "--trainer.max_epochs", 3).code == 0
    (path,) = tmp_path.glob("runs/*/traces.npz")
    with np.load(path, allow_pickle=False) as stored:
        assert stored["lambda"].tolist() == [[0, 0], [2, 2]]
        assert stored["lambda.epoch"].tolist() == [0, 2]


# --- what is shown ---


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_table_has_a_column_for_each_head_and_plain_numbers_of_generation():
    heads = {"accuracy": 0.5, "cls/accuracy": 0.25, "fid[tiny]": 12.3456, "kl_to_uniform": 0.5}
    data = {"source": "Digits", "class_names": []}
    record = {"name": "run", "data": data, "metrics": {"last": {"test": heads}}}
    text = shown(result_table(record))
    assert "last epoch, cls" in text
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines()]
    assert ["accuracy", "50.0", "25.0"] in rows
    assert ["FID [tiny] (not %)", "12.346", "-"] in rows
    assert ["KL to uniform, nats (not %)", "0.500", "-"] in rows


def test_table_shows_percent_by_selection_and_the_worst_class():
    test = dict.fromkeys(METRICS, 0.25) | {"many_recall": None, "few_recall": 1.0}
    record = {
        "name": "[run]",
        "data": {"source": "Digits", "class_names": ["[a]", "b", "c"]},
        "metrics": {
            "last": {"test": test | {"per_class_recall": [0.5, None, 0.75]}},
            "best": {"test": test | {"per_class_recall": [0.5, 0.0, 0.0]}},
        },
    }
    text = shown(result_table(record))
    rows = {}
    for line in text.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            rows[name] = cells
    assert "best on val" in text
    assert rows["accuracy"] == ["25.0", "25.0"]
    assert rows["few-shot recall (< 20)"] == ["100.0", "100.0"]
    assert rows["many-shot recall (> 100 training images)"] == ["-", "-"]
    assert rows["class with the min recall"] == ["[a]", "b"]


def test_device_and_memory_of_a_cpu():
    assert f"{os.cpu_count()} cores" in device_name(torch.device("cpu"))
    assert peak_memory(torch.device("cpu")) > 1e7

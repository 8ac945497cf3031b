"""The dry run: its counts are those of the real run, its memory that of tensors, no trace left."""

import json

import pytest
import torch
import yaml
from torch import nn

from ltbench.data import LongTailDataModule
from ltbench.methods.erm import ERM
from ltbench.records import read_record
from ltbench.runs.cost import SavedTensors, cost_command


@pytest.fixture
def dry(tmp_path, monkeypatch, capsys):
    """Run it in the test's folder; return what it measured."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        cost_command([*map(str, words), "--output", "cost.json"])
        return json.loads((tmp_path / "cost.json").read_text())

    return run


def test_counts_are_those_of_the_run(dry, tiny, digits_run, tmp_path, capsys):
    found = dry("--config", tiny)
    record = read_record(digits_run.folder / "record.json")
    assert (found["steps"], found["epochs"]) == (record["steps"], record["epochs"])
    assert found["parameters"] == record["parameters"]
    assert (found["images_per_step"], found["devices"]) == (32, 1)
    assert found["images"] >= record["images_seen"]
    assert found["precision"] == record["precision"]
    assert found["timed_steps"] == 10  # more than an epoch has
    assert found["hours"] == pytest.approx(found["steps"] * found["seconds_per_step"] / 3600)
    assert "per step" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "cost.json"}


def test_memory_is_that_of_the_tensors(dry, tiny, tmp_path):
    config = yaml.safe_load(tiny.read_text())
    config["model"]["init_args"]["optimizer"] = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 1e-3},
    }
    tiny.write_text(yaml.safe_dump(config))
    found = dry("--config", tiny)["memory_bytes"]
    model = ERM(10, 1, backbone="tiny_net")
    trained = 4 * sum(p.numel() for p in model.parameters())
    counts = sum(4 for _ in model.parameters())  # a step counter for each
    buffers = sum(b.nbytes for b in model.buffers())
    assert found["gradients"] == trained
    assert found["optimizer"] == 2 * trained + counts
    assert found["weights"] >= trained + buffers  # and the counts of metrics
    data = LongTailDataModule("digits", imbalance_factor=10, largest=60, val_fraction=0.2)
    data.setup()
    assert found["images"] == len(data.splits["train"].indices) * 64
    assert found["all"] == sum(size for part, size in found.items() if part != "all")


def test_activations_are_counted_once_and_at_their_peak():
    weight = nn.Parameter(torch.randn(8, 8))
    inputs = torch.randn(16, 8)
    saved = SavedTensors({weight.untyped_storage().data_ptr()})
    with saved:
        for _ in range(3):
            hidden = inputs @ weight  # keeps the inputs
            hidden.exp().sum().backward()  # keeps what it gives
    assert saved.peak == inputs.nbytes + 16 * 8 * 4
    assert saved.now == 0
    with saved:
        kept = [(inputs @ weight).exp() for _ in range(3)]  # all at one time
        assert saved.peak == inputs.nbytes + 3 * 16 * 8 * 4
    del kept
    assert saved.now == 0


def test_more_activations_in_larger_batches(dry, tiny):
    small = dry("--config", tiny)["memory_bytes"]["activations"]
    large = dry("--config", tiny, "--data.batch_size", 64)["memory_bytes"]["activations"]
    assert 1.9 < large / small < 2.1


def test_short_trainings(dry, tiny):
    found = dry("--config", tiny, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1)
    assert (found["steps"], found["timed_steps"]) == (1, 1)

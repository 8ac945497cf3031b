"""SelMix from the command line: record, exact resume, two processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from selmix_digits import START, build, train
from support import fit, run_script
from torch.testing import assert_close

from ltbench.optim.sam import SAM
from ltbench.records import read_record


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "mean_recall_coverage", "partners": "unlabelled"},
        {"gradient_rule": SAM(0.05), "ema_decay": 0.9},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(start, tmp_path, options):
    def save(folder):
        every = {"save_top_k": -1, "save_on_train_epoch_end": True}
        return [ModelCheckpoint(tmp_path / folder, "{epoch}", **every)]

    whole, _ = train(start, epochs=4, callbacks=save("whole"), **options)
    resumed, data = build(start, **options)
    middle = tmp_path / "whole/epoch=1.ckpt"
    fit(resumed, data, 4, save("new"), resume=middle, check_val_every_n_epoch=100)
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert whole.history == resumed.history


@pytest.fixture
def config(start, tmp_path):
    settings = yaml.safe_load(START)
    settings["trainer"]["max_epochs"] = 3
    settings["model"] = {
        "class_path": "SelMix",
        "init_args": {"init_from": {"path": str(start)}, "partners": "unlabelled", "cycle": 4},
    }
    path = tmp_path / "selmix.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_leaves_its_start_as_it_was_and_says_what_it_did(start, config, ltbench, tmp_path):
    files = {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    assert files == {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}

    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder / "record.json")
    assert (record["status"], record["method"], record["stage"]) == ("done", "selmix", "fine-tune")
    assert record["lineage"][0]["role"] == "init_from"
    assert record["lineage"][0]["job_id"] == read_record(start / "record.json")["job_id"]
    assert record["steps"] == 12
    with np.load(folder / "traces.npz") as traces:
        assert traces["pair_shares"].shape == (3, 10, 10)
        assert traces["positive_gains"].shape == traces["objective"].shape == (3,)
        assert traces["actual_vs_predicted_change"].shape == (2, 2)
        assert traces["lambda"].shape == (3, 10)
    table = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)
    assert {"trainobjective", "trainpredicted_change", "trainactual_change"} <= set(
        table.dtype.names
    )

    # Its checkpoint is tested, and starts another run, without what it started from.
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    tested = ltbench(
        "test", "--config", folder / "config.yaml", "--ckpt_path", folder / "checkpoints/last.ckpt"
    )
    assert tested.code == 0, tested.err
    assert settings["model"]["class_path"].endswith("SelMix")
    again = ltbench("fit", "--config", config, "--model.init_from.path", folder, "--name", "again")
    assert again.code == 0, again.err


def test_a_missing_start_is_one_line(config, refused):
    message = refused("fit", "--config", config, "--model.init_from.path", "runs/none")
    assert "runs/none" in message


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
import support, torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from ltbench.cli import main

class Keep(Callback):
    def on_train_end(self, trainer, pl_module):
        kept = [pl_module.sampler.bounds, *(p.data for p in pl_module.net.parameters())]
        torch.save(kept, f"rank{{trainer.global_rank}}.pt")

if __name__ == "__main__":
    main()
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_agree_on_the_shares_and_take_the_same_steps(config, tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    (tmp_path / "processes.py").write_text(script)
    found = {}
    for ranks, strategy in ((1, "auto"), (2, "ddp")):
        run_script(
            tmp_path / "processes.py",
            *("fit", "--config", config, "--name", f"on{ranks}", "--trainer.max_epochs", 1),
            *("--trainer.callbacks+=processes.Keep", "--trainer.devices", ranks),
            *("--trainer.strategy", strategy),
        )
        found[ranks] = [
            torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)
        ]
    first, second = found[2]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert_close(first[0], found[1][0][0])

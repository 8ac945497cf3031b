"""However many processes there are, the same weights are measured alike, and one model is trained.

Most ranks here are forked from a process that has imported everything, with the variables that
``torchrun`` sets; ``torchrun`` itself is the last test.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import processes
import pytest
import support
import torch
import torch.distributed as dist
import yaml
from compared import assert_same_run, only_run
from every_method import DISTILBERT, STUDENT, config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ltbench.data import LongTailDataModule
from ltbench.data.datasets import Split
from ltbench.metrics.collector import LongTailMetrics
from ltbench.records import read_record

pytestmark = pytest.mark.ddp

MOST = 4  # ranks
CLASSES = 10


# --- evaluation ---


class Ranks:
    """Processes that wait for a task, and do it together as so many ranks as it asks for."""

    def __init__(self, folder):
        self.folder = folder
        context = multiprocessing.get_context("forkserver")
        pipes = [context.Pipe() for _ in range(MOST)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [
            processes.start(_serve, rank, pipe) for rank, (_, pipe) in enumerate(pipes)
        ]

    def __call__(self, ranks, *task):
        """Return what ``measure`` returned on each rank."""
        meeting = f"file://{self.folder}/{uuid.uuid4()}"
        for pipe in self.pipes[:ranks]:
            pipe.send((meeting, ranks, task))
        found = []
        for pipe in self.pipes[:ranks]:
            assert pipe.poll(120), "it hangs"
            found.append(pipe.recv())
        return found

    def stop(self):
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def _serve(rank, pipe):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while task := pipe.recv():
        meeting, ranks, arguments = task
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
        pipe.send(measure(*arguments))
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.stop()


def measure(labels, batch_size, seed, weights):
    """Measure this rank's share of digits that are said to have these labels.

    Args:
        labels: The labels.
        batch_size: Images a batch.
        seed: Of the network, or of the scores.
        weights: Whether a network scores the images; else an image's scores are drawn beforehand.

    Returns:
        The metrics and the counts that they come from, over all ranks.
    """
    data = LongTailDataModule("digits", eval_batch_size=batch_size)
    data.setup()
    data.splits["test"] = Split("test", np.arange(len(labels)), np.array(labels))
    draws = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(labels), CLASSES, generator=draws)
    torch.manual_seed(seed)
    net = support.TinyNet(CLASSES, in_chans=1).eval()
    collector = LongTailMetrics(CLASSES, torch.arange(1, CLASSES + 1))
    collector.update(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.long))
    with torch.no_grad():
        for batch in data.evaluation_batches("test", torch.device("cpu")):
            found = net(batch["image"]) if weights else scores[batch["index"]]
            collector.update(found, batch["label"])
        metrics = collector.compute() | {"recalls": collector.per_class_recall()}
        with collector.sync_context():
            counts = {name: getattr(collector, name).clone() for name in collector._defaults}
    return {name: value.numpy() for name, value in (metrics | counts).items()}


labels = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


@settings(max_examples=5, deadline=None)
@given(labels=labels, batch_size=st.integers(1, 9), seed=st.integers(0, 99), weights=st.booleans())
@example(labels=[3], batch_size=4, seed=0, weights=True)  # one image: three ranks have none
@example(labels=[0, 1, 0, 2, 0, 1, 0], batch_size=2, seed=1, weights=False)  # 1 on one rank of 2
@example(labels=[*range(10), 4, 4, 4], batch_size=3, seed=2, weights=True)
def test_any_number_of_processes_measures_the_same(together, labels, batch_size, seed, weights):
    (alone,) = together(1, labels, batch_size, seed, weights)
    assert alone["support"].sum() == len(labels)
    for ranks in range(2, MOST + 1):
        for found in together(ranks, labels, batch_size, seed, weights):
            assert found.keys() == alone.keys()
            for name, value in alone.items():
                if weights and name in ("ece", "bin_confidences"):
                    # The last bit of a score depends on how many images are scored together.
                    assert found[name] == pytest.approx(value, rel=1e-5)
                else:
                    assert found[name].tobytes() == value.tobytes(), (ranks, name)


INEXACT = ("ece", "fid", "confidence")  # their last bit depends on what is computed together


def assert_measured_alike(found, alone):
    """Compare metrics by name: repr says the last bit."""
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        if any(part in name for part in INEXACT):
            both = (np.array(each[name], dtype=float) for each in (found, alone))
            np.testing.assert_allclose(*both, rtol=1e-6)
        else:
            assert repr(found[name]) == repr(value), name


def told(table):
    """Return the metrics of the table that a command prints, as it prints them."""
    lines = [line.split("│")[1:3] for line in table.splitlines() if line.startswith("│")]
    assert lines
    return {name.strip(): value.strip() for name, value in lines}


FEW = {"ant": 1, "bee": 1, "cat": 1}
UNEVEN = {"ant": 4, "bee": 4, "cat": 5}


@pytest.mark.slow
@pytest.mark.parametrize("counts", [FEW, UNEVEN], ids=["3 images", "13 images"])
def test_a_checkpoint_is_measured_alike_on_one_to_four_devices(counts, tmp_path):
    """Also where a device has no image at all, and where one has a batch more than another."""
    root, whole = tmp_path / "images", yaml.safe_load(support.TINY)
    support.write_images(root / "train", {"ant": 20, "bee": 9, "cat": 3})
    for seed, split in enumerate(("val", "test"), start=1):
        support.write_images(root / split, counts, seed=seed)
    data = {"source": "folder", "root": str(root), "profile": "natural", "eval_batch_size": 2}
    whole["data"]["init_args"] = data | {"batch_size": 8}
    config = tmp_path / "folder.yaml"
    config.write_text(yaml.safe_dump(whole))
    done = processes.run(["fit", "--config", config, "--trainer.max_epochs", 1], tmp_path)
    assert done.code == 0, done.err
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    for command in ("test", "validate"):
        words = [command, "--config", config, "--ckpt_path", last]
        alone = told(processes.run(words, tmp_path).out)
        for ranks in range(2, MOST + 1):
            first, *others = processes.run_ranks(words, tmp_path, ranks)
            assert first.code == 0, first.err
            assert_measured_alike(told(first.out), alone)
            assert {(other.code, other.out) for other in others} == {(0, "")}


@pytest.mark.slow
def test_every_method_is_measured_alike_on_one_to_four_devices(method, of_method, tmp_path):
    """400 images, or 90 samples, in batches of 7."""
    config = of_method(method, epochs=1, eval_batch_size=7)
    done = processes.run(["fit", "--config", config], tmp_path)
    assert done.code == 0, done.err
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    words = ["test", "--config", config, "--ckpt_path", last]
    words += ["--trainer.callbacks+=processes.Measure"]
    found = []
    for ranks in range(1, MOST + 1):
        for rank, each in enumerate(processes.run_ranks(words, tmp_path, ranks)):
            assert each.code == 0, each.err
            found.append(json.loads((tmp_path / f"measured{rank}of{ranks}.json").read_text()))
    alone, *others = found
    for other in others:
        assert_measured_alike(other, alone)


# --- training ---

KEEP = "--trainer.callbacks+=processes.Keep"
OWN = ("running_mean", "running_var", "_u", "_v")  # of the images that a rank has seen itself


def shared(found):
    """What all ranks must hold alike: everything but what is named after a rank's own images."""
    if isinstance(found, dict):
        return {
            name: shared(value)
            for name, value in found.items()
            if not str(name).endswith(OWN) and not str(name).startswith("train/")
        }
    return [shared(value) for value in found] if isinstance(found, list | tuple) else found


def train(words, home, ranks):
    """Train on so many ranks; return what each held at the end."""
    done = processes.run_ranks([*words, KEEP], home, ranks)
    for rank in done:
        assert rank.code == 0, rank.err
    assert "Record: " in done[0].out
    assert [rank.out for rank in done[1:]] == [""] * (ranks - 1)
    return [torch.load(home / f"rank{rank}of{ranks}.pt") for rank in range(ranks)]


@pytest.mark.slow
def test_every_method_holds_one_state_on_two_processes(method, of_method, tmp_path):
    """29 and 28 images to validate on: one process has a batch more than the other.

    And a training that is killed goes on to the same end.
    """
    words = ["fit", "--config", of_method(method, epochs=3, eval_batch_size=4)]
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    first, second = train(words, calm, 2)
    support.assert_same(shared(first), shared(second))
    found = read_record(only_run(calm) / "record.json")
    assert (found["world_size"], found["status"]) == (2, "done")
    # What is validated during the training is what the checkpoint of that epoch holds.
    for name, value in found["metrics"]["last"].get("val", {}).items():
        assert repr(first["history"][-1][f"val/{name}"]) == repr(value).replace("None", "nan")
    moment = ("step", random.Random(method).randint(8, 15))
    killed = processes.run_ranks([*words, KEEP], rough, 2, moment)
    assert -signal.SIGKILL in {rank.code for rank in killed}
    assert all(rank.code for rank in killed)
    train(words, rough, 2)
    assert_same_run(only_run(calm), only_run(rough))


# Without batch norm, and where nothing is drawn by rank, a step of two processes is that of one.
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
FLAT = {"backbone": "flat_net", "backbone_args": None, "ema_decay": None}
DRAWN = {"reweighting": None, "mixup": 0.0, "cutmix": 0.0}
DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
EXACT = {
    "erm": FLAT | DRAWN | {"gradient_rule": None},
    "erm, SAM": FLAT | DRAWN | {"gradient_rule": "SAM"},
    "paco": FLAT | {"gradient_rule": None, "queue": 64},
    "paco, SAM": FLAT | {"gradient_rule": "SAM", "queue": 64},
    "deit_lt": DRAWN | {"backbone_args": STUDENT, "micro_batch": None, "ema_decay": None},
    "fixmatch": FLAT | {"p_cutoff": 0.12},
    "csst": FLAT | {"kl_tau": 2.0},
    "csst_text": {"backbone_args": DISTILBERT | DROPOUT, "ema_decay": None},
    "selmix": {"min_share": 1.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EXACT)
def test_two_processes_train_what_one_trains(case, starts, tmp_path):
    words = exact(case.partition(",")[0], EXACT[case], starts, tmp_path)
    (alone,), (first, _) = (train(words, tmp_path, n) for n in (1, 2))
    for key in ("model", "traces"):
        support.assert_same(in_order(alone[key]), in_order(first[key]), key, close)


@pytest.mark.slow
def test_sam_may_ascend_along_the_gradient_of_each_rank(starts, tmp_path):
    rules = {
        "alone": {"class_path": "processes.SAMOfTwoHalves", "init_args": {"rho": 0.5}},
        "ranks": {"class_path": "SAM", "init_args": {"rho": 0.5, "sync_ascent": False}},
        "together": {"class_path": "SAM", "init_args": {"rho": 0.5}},
    }
    found = {}
    for name, rule in rules.items():
        words = exact("erm", FLAT | DRAWN | {"gradient_rule": rule}, starts, tmp_path)
        found[name] = train(words, tmp_path, 1 if name == "alone" else 2)
    (alone,), (first, second), (together, _) = found.values()
    support.assert_same(first["model"], second["model"])
    support.assert_same(alone["model"], first["model"], "", close)
    moved = first["model"]["net.fc.weight"] - together["model"]["net.fc.weight"]
    assert moved.abs().max() > 1e-3


def exact(method, settings, starts, folder):
    """Write the config of a run that is the same on any number of processes; return its words."""
    whole = yaml.safe_load(config(method, starts, epochs=2))
    whole["model"]["init_args"] |= {"optimizer": SGD, **settings}
    whole["trainer"]["limit_train_batches"] = 5
    data = whole["data"]["init_args"]
    data |= {name: [] for name in ("augment", "strong_augment") if name in data}
    data |= {"views": {"key": []}} if "views" in data else {}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(whole))
    return ["fit", "--config", path]


def close(one, other):
    return torch.allclose(one.double(), other.double(), atol=1e-5)


def in_order(found):
    """The queue of keys holds those of a step rank by rank: sort them."""
    return {k: v.sort(0).values if k.startswith("queue.") else v for k, v in found.items()}


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The program itself, on its demo, with all that a user gets to see."""
    demo = Path(__file__).parents[2] / "configs" / "vssam_digits.yaml"
    words = [*("--nproc_per_node", "2", "-m", "ltbench", "fit", "--config", demo)]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(torchrun, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Record: ") == 1
    (path,) = tmp_path.glob("runs/*/record.json")
    record = read_record(path)
    assert (record["world_size"], record["status"], record["epochs"]) == (2, "done", 2)

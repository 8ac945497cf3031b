"""A long run holds no more than a short one; a worker that dies is told by its image."""

import json
import os
import signal
import time
from pathlib import Path

import processes
import pytest
import yaml
from PIL import Image
from support import TINY, write_images
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ltbench.data.loading import death
from ltbench.records import read_record

STEPS = 2000
WARM = 400  # steps, until every part has been used
GROWTH = 16  # megabytes: what allocators keep, 10 kB a step


def watched(words, home):
    """Train, and return what the process held at the ends of epochs, after the warm-up."""
    words = [*words, "--trainer.callbacks+=processes.Watch"]
    done = processes.run(words, home, timeout=1800, LTBENCH_TRUST="processes")
    assert done.code == 0, done.err
    seen = json.loads((home / "watched.json").read_text())
    assert seen[-1]["step"] >= STEPS
    return [found for found in seen if found["step"] > WARM]


def assert_nothing_grows(seen):
    first, last = seen[0], seen[-1]
    print({name: (first[name], last[name]) for name in first})
    assert last["files"] == first["files"]
    # Some are held from one logging to the next, or from a first warning on; none by every epoch.
    assert last["tensors"] - first["tensors"] < len(seen) / 4
    assert last["megabytes"] - first["megabytes"] < GROWTH


@pytest.mark.slow
def test_no_method_grows_over_2000_steps(method, of_method, tmp_path):
    whole = yaml.safe_load(of_method(method).read_text())
    data, model = (whole[part]["init_args"] for part in ("data", "model"))
    if "steps_per_epoch" in data:
        data["steps_per_epoch"] = each = 40
        data["batch_size"] = 8
        model |= {"cycle": each} if "cycle" in model else {}
    else:
        data["batch_size"], each = 8, 25  # at the least
    whole["trainer"]["max_epochs"] = -(-STEPS // each)
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert_nothing_grows(watched(["fit", "--config", path], tmp_path))


# --- workers ---


@pytest.fixture
def decoded(tmp_path):
    """A config of images that are decoded by two workers."""
    counts = {"ant": 30, "bee": 9, "cat": 3}
    for seed, split in enumerate(("train", "test")):
        write_images(tmp_path / "images" / split, counts, seed=seed)
    whole = yaml.safe_load(TINY)
    whole["data"]["init_args"] = {
        "source": "folder",
        "root": str(tmp_path / "images"),
        "profile": "natural",
        "val_fraction": 0.2,
        "batch_size": 8,
        "decoding": {"random_crop": [0.5, 1.0]},
        "num_workers": 2,
    }
    path = tmp_path / "decoded.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.mark.slow
def test_workers_leave_nothing_open(decoded, tmp_path):
    """Each epoch starts workers anew: hence few epochs of many steps."""
    words = ["fit", "--config", decoded, "--data.batch_size", 2]
    words += ["--trainer.max_epochs", -(-STEPS // 16)]
    assert_nothing_grows(watched(words, tmp_path))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_dies_is_told_by_its_image(number, decoded, refused, tmp_path, monkeypatch):
    fatal, opened = tmp_path / "images/train/bee/004.png", Image.open

    def open_(path, *args, **options):
        if Path(path.name) == fatal:
            os.kill(os.getpid(), number)
        return opened(path, *args, **options)

    monkeypatch.setattr(Image, "open", open_)
    told = refused("fit", "--config", decoded, "--data.val_fraction", 0, code=1)
    assert str(fatal) in told
    (record,) = tmp_path.glob("runs/*/record.json")
    found = read_record(record)
    assert found["status"] == "failed"
    assert str(fatal) in found["cause"]


def test_a_dying_worker_is_told_and_not_the_connection_that_it_breaks(
    decoded, ltbench, tmp_path, monkeypatch
):
    """A process closes its files some time before it is dead: here two seconds."""
    read, opened = [], Image.open
    fetch, closed = _MultiProcessingDataLoaderIter._next_data, tmp_path / "closed"

    def open_(path, *args, **options):
        if get_worker_info() is not None and get_worker_info().id == 0:
            read.append(path)
        if len(read) == 4:  # the first of its second batch; the first one is not fetched yet
            time.sleep(0.5)
            closed.touch()
            os.closerange(3, 4096)
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(path, *args, **options)

    def next_data(loader):
        while not closed.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        return fetch(loader)

    monkeypatch.setattr(Image, "open", open_)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", next_data)
    done = ltbench("fit", "--config", decoded, "--data.val_fraction", 0, "--data.batch_size", 3)
    assert done.code == 1
    assert "worker that loads images died (killed by signal: Killed)" in done.err
    (record,) = tmp_path.glob("runs/*/record.json")
    assert read_record(record)["status"] == "failed"
    assert "a worker that loads images died" in read_record(record)["cause"]


def test_a_worker_that_read_nothing_is_told_too():
    told = death(RuntimeError("DataLoader worker (pid(s) 11, 12) exited unexpectedly"))
    assert "died (exited unexpectedly)" in told
    assert death(RuntimeError("another error")) is None


def test_an_image_that_a_worker_cannot_read_is_one_line(decoded, refused, tmp_path):
    bad = tmp_path / "images/train/bee/004.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:40] + bytes(len(content) - 60) + content[-20:])
    assert str(bad) in refused("fit", "--config", decoded, "--data.val_fraction", 0)

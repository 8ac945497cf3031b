"""What the tests of the leaderboard share: suites, made-up runs, a training of no time."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import COUNTS, SUPPORT, record_of

from ltbench.metrics.catalogue import metrics_from_counts

# Stands in for `python -m ltbench fit`: one line a finished epoch, and a record like a run's. What
# it ends with depends on seed and earlier epochs alone, so it shows an epoch lost or run twice.
TRAINING = """
import json, os, pathlib, sys, time
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[4:])
config = json.loads(pathlib.Path(sys.argv[3]).read_text())
if config.get("fail"):
    sys.exit("error: it was asked to fail.")
folder = pathlib.Path(given["trainer.default_root_dir"]) / (given["name"] + "-0")
folder.mkdir(parents=True, exist_ok=True)
path = folder / "record.json"
state = json.loads(path.read_text()) if path.exists() else {"epochs": 0, "value": 0}
template = json.loads(pathlib.Path("template.json").read_text())
epochs = int(given.get("trainer.max_epochs", config["trainer"]["max_epochs"]))
template["config"]["trainer"] = {"max_epochs": epochs}
began = time.monotonic()
seed = int(given["seed_everything"])
for name, place in given.items():
    if name.startswith("model.") and not state["epochs"]:
        state["value"] += json.loads((pathlib.Path(place) / "record.json").read_text())["value"]
def write(status):
    test = {"accuracy": (state["value"] % 97) / 97}
    record = template | state | {
        "name": given["name"], "seed": seed, "status": status,
        "metrics": {"last": {"test": test}}, "wall_seconds": time.monotonic() - began,
    }
    part = path.with_name(f".{os.getpid()}")
    part.write_text(json.dumps(record))
    part.replace(path)
with open("epochs.log", "a") as log:
    while state["epochs"] < epochs:
        time.sleep(config.get("sleep", 0.02))
        state["epochs"] += 1
        state["value"] = (state["value"] * 31 + seed * 7 + config.get("term", 1)) % 1_000_003
        write("running")
        if config.get("asked") == state["epochs"]:
            sys.exit(128 + 15)
        log.write(f"{given['name']} {seed} {state['epochs']} {given.get('model.start', '')}\\n")
        log.flush()
write("done")
"""


@pytest.fixture
def make_run(tmp_path):
    """The writer of a run whose classes are found with given probabilities."""

    def write(name="ce", seed=0, recalls=(0.9, 0.7, 0.4), folder=None, logits=False, **changes):
        draws = np.random.default_rng([seed, *name.encode()])
        label = np.repeat(np.arange(3), SUPPORT)
        right = draws.random(len(label)) < np.array(recalls)[label]
        prediction = np.where(right, label, (label + 1) % 3)
        record = record_of(name, seed, **changes)
        folder = folder or tmp_path / "runs" / f"{name}-{seed}"
        folder.mkdir(parents=True)
        arrays = {"index": np.arange(len(label)), "label": label, "prediction": prediction}
        if logits:
            scores = draws.normal(size=(len(label), 3)) + 4 * np.eye(3)[prediction]
            arrays |= {"logits": scores.astype(np.float32), "prediction": scores.argmax(1)}
            prediction = arrays["prediction"]
            np.savez_compressed(folder / "val_predictions_last.npz", **arrays)
            record["data"]["images"]["val"] = len(label)
        hits = np.bincount(label[prediction == label], minlength=3)
        support, claims = np.bincount(label), np.bincount(prediction, minlength=3)
        metrics = metrics_from_counts(hits, support, claims, np.array(COUNTS))
        metrics = {k: None if np.isnan(v) else v for k, v in metrics.items()}
        test = metrics | {"per_class_recall": (hits / support).tolist()}
        record["metrics"] = {"last": {"epoch": 3, "test": test}}
        (folder / "record.json").write_text(json.dumps(record))
        np.savez_compressed(folder / "predictions_last.npz", **arrays)
        (folder / "metrics.csv").write_text("epoch,val/accuracy\n0,0.5\n1,\n2,0.75\n")
        return folder

    return write


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A working folder where `python -m ltbench fit` is the stand-in; returns a suite's writer."""
    (tmp_path / "ltbench").mkdir()
    (tmp_path / "ltbench/__init__.py").touch()
    (tmp_path / "ltbench/__main__.py").write_text(TRAINING)
    (tmp_path / "template.json").write_text(json.dumps(record_of()))
    monkeypatch.chdir(tmp_path)
    return write_suite


def write_suite(rows, name="mine", **more):
    """Write ``<name>.yaml`` and the configs that it names: a number of epochs, or a mapping."""
    rows = copy.deepcopy(rows)
    for row in rows.values():
        for stage in row.get("stages", {"": row}).values():
            content = stage["config"]
            content = content if isinstance(content, dict) else {"epochs": content}
            content["trainer"] = {"max_epochs": content.pop("epochs")}
            path = Path(f"config{len(list(Path().glob('config*')))}.yaml")
            path.write_text(json.dumps(content))  # JSON is YAML
            stage["config"] = str(path)
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({"rows": rows, **more}, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def program():
    """The installed command, which does not look for modules in the working folder."""
    path = shutil.which("ltbench", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert path, "ltbench is not installed beside this Python"
    return path


def killed_at_random(words, seed, times, longest):
    """Run a command, kill it with SIGKILL at random moments, and in the end let it finish.

    In turn it is killed alone, and with all that it has started.
    """
    draw = random.Random(seed)
    for n in range(times):
        runner = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            runner.wait(draw.uniform(0.1, longest))
        except subprocess.TimeoutExpired:
            (os.kill, os.killpg)[n % 2](runner.pid, signal.SIGKILL)
            runner.wait()
    return subprocess.run(words, check=False, capture_output=True, text=True)


@pytest.fixture
def kill_at_random():
    """The function that kills a command at random moments."""
    return killed_at_random

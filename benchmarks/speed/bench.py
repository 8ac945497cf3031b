"""What the leaderboard costs: the runner a job, the tables and report of 1,000 runs, the status.

The runs are made up (10,000 test images, 10 classes, stored logits); the runner's jobs do nothing
for a moment, once started by hand one after another and once by `ltbench bench run`. Each command
is a process of its own, so its start is in its time.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from ltbench import records
from ltbench.bench import suite as suites
from ltbench.bench.jobs import Store
from ltbench.counts import metrics_from_counts

COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
GOALS = {
    "runner_seconds_per_job": ("runner, on top of a job's own time, s", "< 3"),
    "report_seconds": ("leaderboard and report, s", "< 10"),
    "report_gib": ("leaderboard and report, GiB", "< 1"),
    "status_seconds": ("bench status, s", "< 1"),
}

# Stands in for `python -m ltbench fit`.
TRAINING = """
import json, pathlib, sys, time
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[4:])
folder = pathlib.Path(given["trainer.default_root_dir"]) / given["name"]
folder.mkdir(parents=True)
time.sleep(0.5)
(folder / "record.json").write_text(json.dumps({"schema": 1, "status": "done"}))
"""


def write_run(folder: Path, name: str, seed: int, images: int) -> None:
    """Write a made-up run: record, predictions with logits, curves."""
    draws = np.random.default_rng([seed, *name.encode()])
    classes = len(COUNTS)
    label = np.arange(images) % classes
    logits = draws.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), label] += 2
    prediction = logits.argmax(1)
    hits = np.bincount(label[prediction == label], minlength=classes)
    support, claims = np.bincount(label), np.bincount(prediction, minlength=classes)
    test: dict[str, Any] = metrics_from_counts(hits, support, claims, np.array(COUNTS))
    record = {
        **{"schema": 1, "job_id": f"{name}-{seed}", "name": name, "method": "erm", "seed": seed},
        **{"dataset": "cifar10", "stage": "train", "lineage": [], "status": "done"},
        "config": {
            "trainer": {"max_epochs": 200},
            "model": {"init_args": {"backbone": "resnet32_cifar", "loss": name}},
            "data": {"init_args": {}},
        },
        "data": {
            "source": "CIFAR-10",
            "class_names": [str(c) for c in range(classes)],
            "class_counts": COUNTS,
            "images": {"train": sum(COUNTS), "test": images},
            "index_hash": "0" * 64,
        },
        "metrics": {"last": {"test": test | {"per_class_recall": (hits / support).tolist()}}},
        **{"wall_seconds": 3600.0, "images_seen": 2_481_200, "images_per_second": 689.0},
        **{"epochs": 200, "steps": 19400, "peak_memory_bytes": 2**30, "device": "made up"},
    }
    records.write_record(folder / "record.json", record)
    arrays = {"index": np.arange(images), "label": label, "prediction": prediction}
    np.savez_compressed(folder / "predictions_last.npz", **arrays, logits=logits)
    rows = "".join(f"{epoch},{epoch / 200}\n" for epoch in range(200))
    (folder / "metrics.csv").write_text(f"epoch,val/accuracy\n{rows}")


def seconds_of(words: Sequence[str], cwd: Path) -> float:
    """Run a command and return its wall time."""
    began = time.perf_counter()
    subprocess.run(words, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def report(home: Path, rows: int, seeds: int, images: int) -> dict[str, float]:
    """Time `leaderboard --output report.html` over made-up runs, and weigh it."""
    for row in range(rows):
        for seed in range(seeds):
            write_run(home / f"many/row{row}-{seed}", f"row{row}", seed, images)
    words = [*LTBENCH, "leaderboard", "many", "--output", "report.html"]
    seconds = seconds_of(words, home)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return {"report_seconds": seconds, "report_gib": peak / unit}


def runner(home: Path, jobs: int) -> dict[str, float]:
    """Time jobs that were started by hand, and by the runner one at a time."""
    (home / "ltbench").mkdir()
    (home / "ltbench/__init__.py").touch()
    (home / "ltbench/__main__.py").write_text(TRAINING)
    (home / "empty.yaml").write_text("trainer: {}\n")
    fit = [sys.executable, "-m", "ltbench", "fit", "--config", "empty.yaml"]
    by_hand = 0.0
    for job in range(jobs):
        words = [*fit, f"--trainer.default_root_dir=hand{job}", "--name=x"]
        by_hand += seconds_of(words, home)
    suite = {"seeds": list(range(jobs)), "rows": {"x": {"config": "empty.yaml"}}}
    (home / "mine.yaml").write_text(yaml.safe_dump(suite))
    through = seconds_of([*LTBENCH, "bench", "run", "mine.yaml", "--jobs", "1"], home)
    return {"runner_seconds_per_job": (through - by_hand) / jobs}


def status(home: Path, rows: int, seeds: int) -> dict[str, float]:
    """Time `bench status` of a suite whose jobs are all there."""
    content = {
        "seeds": list(range(seeds)),
        "rows": {f"row{n}": {"config": "empty.yaml", "overrides": {"x": n}} for n in range(rows)},
    }
    path = home / "large.yaml"
    path.write_text(yaml.safe_dump(content))
    store, plan = Store(home / "runs/bench"), suites.plan(suites.read(path))
    store.save(plan)
    template = json.loads((home / "many/row0-0/record.json").read_text())
    for job in plan.jobs.values():
        record = template | {"name": job.name, "seed": job.seed}
        records.write_record(store.job_folder(job) / "run/record.json", record)
    return {"status_seconds": seconds_of([*LTBENCH, "bench", "status", "large"], home)}


LTBENCH = [sys.executable, "-P", "-m", "ltbench"]  # -P: not the stand-in of the working folder


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found = report(home, given.rows, given.seeds, given.images)  # first: it weighs the children
        found |= runner(home, given.jobs) | status(home, given.rows, given.seeds)
    table = Table("", "measured", "goal", title=f"{given.rows * given.seeds} runs")
    for name, (title, goal) in GOALS.items():
        table.add_row(title, f"{found[name]:.2f}", goal)
    Console().print(table)
    setting = {
        "runs": given.rows * given.seeds,
        "test_images": given.images,
        "jobs": given.jobs,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "versions": records.versions(),
    }
    content = json.dumps({"measured": found, "setting": setting}, indent=1) + "\n"
    given.output.write_text(content)


if __name__ == "__main__":
    main()

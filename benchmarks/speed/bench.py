"""What does the leaderboard cost: the runner a job, the report of 1,000 runs, the status?

The runs are made up (10,000 test images, 10 classes, stored logits); the runner's jobs do nothing
for a moment, once started by hand one after another and once by `ltbench bench run`. Each command
is a process of its own, so its start is in its time.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from timing import Parser, Rounds, Row, report

from ltbench import records
from ltbench.bench.run import suite as suites
from ltbench.bench.run.jobs import Store
from ltbench.metrics.catalogue import metrics_from_counts

COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
LTBENCH = [sys.executable, "-P", "-m", "ltbench"]  # -P: not the stand-in of the working folder

# Stands in for `python -m ltbench fit`.
TRAINING = """
import json, pathlib, sys, time
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[4:])
folder = pathlib.Path(given["trainer.default_root_dir"]) / given["name"]
folder.mkdir(parents=True)
time.sleep(0.5)
record = {
    **{"schema": 1, "name": "", "seed": 0, "status": "done", "config": {}, "metrics": {}},
    **{"images_seen": 0, "wall_seconds": 0.5},
    "data": {"source": "", "index_hash": "", "class_names": [], "class_counts": [], "images": {}},
}
(folder / "record.json").write_text(json.dumps(record))
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
    records.write_json(folder / "record.json", record)
    arrays = {"index": np.arange(images), "label": label, "prediction": prediction}
    np.savez_compressed(folder / "predictions_last.npz", **arrays, logits=logits)
    rows = "".join(f"{epoch},{epoch / 200}\n" for epoch in range(200))
    (folder / "metrics.csv").write_text(f"epoch,val/accuracy\n{rows}")


# Runs a command and says how much it held. (A child of this process would begin with its size.)
WEIGH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Leaderboard:
    """A folder full of made-up runs and suites, and the commands on them.

    Args:
        home: The folder.
        rows: Rows of the suite.
        seeds: Runs of a row.
        images: Test images of a run.

    Attributes:
        peak: The most that a report held, in the system's unit.
    """

    def __init__(self, home: Path, rows: int, seeds: int, images: int) -> None:
        self.home = home
        for row in range(rows):
            for seed in range(seeds):
                write_run(home / f"many/row{row}-{seed}", f"row{row}", seed, images)
        (home / "ltbench").mkdir()
        (home / "ltbench/__init__.py").touch()
        (home / "ltbench/__main__.py").write_text(TRAINING)
        (home / "empty.yaml").write_text("trainer: {}\n")
        self._fill_suite(rows, seeds)

    def _fill_suite(self, rows: int, seeds: int) -> None:
        each = {f"row{n}": {"config": "empty.yaml", "overrides": {"x": n}} for n in range(rows)}
        path = self.home / "large.yaml"
        path.write_text(yaml.safe_dump({"seeds": list(range(seeds)), "rows": each}))
        store, plan = Store(self.home / "runs/bench"), suites.plan(suites.read(path))
        store.save(plan)
        template = json.loads((self.home / "many/row0-0/record.json").read_text())
        for job in plan.jobs.values():
            record = template | {"name": job.name, "seed": job.seed}
            records.write_json(store.job_folder(job) / "run/record.json", record)

    def _run(self, *words: str) -> None:
        subprocess.run(words, cwd=self.home, check=True, stdout=subprocess.DEVNULL)

    def report(self) -> None:
        """Write tables and report of all runs."""
        words = (*LTBENCH, "leaderboard", "many", "--output", "report.html")
        weigh = (sys.executable, "-P", "-c", WEIGH, *words)
        self.peak = int(subprocess.check_output(weigh, cwd=self.home))

    def status(self) -> None:
        """Say how far the suite is."""
        self._run(*LTBENCH, "bench", "status", "large")

    def by_hand(self, jobs: int) -> None:
        """Run jobs one after another."""
        for _ in range(jobs):
            where = f"--trainer.default_root_dir=hand{time.monotonic_ns()}"
            self._run(sys.executable, "-m", "ltbench", "fit", "--config", "x", where, "--name=x")

    def through_runner(self, jobs: int) -> None:
        """Run as many of a new suite by the runner, one at a time."""
        name = f"suite{time.monotonic_ns()}.yaml"
        suite = {"seeds": list(range(jobs)), "rows": {"x": {"config": "empty.yaml"}}}
        (self.home / name).write_text(yaml.safe_dump(suite))
        store = ("--folder", f"runs/{name}")
        self._run(*LTBENCH, "bench", "run", name, "--jobs", "1", *store)


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=3)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=5)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        board = Leaderboard(Path(folder), args.rows, args.seeds, args.images)
        rounds = Rounds()
        for _ in range(args.repeats):
            rounds.turn("report", board.report)
            rounds.turn("status", board.status)
            for name, run in (("by hand", board.by_hand), ("runner", board.through_runner)):
                rounds.turn(name, lambda run=run: run(args.jobs), work=args.jobs)
            rounds.close()
    gibibytes = board.peak / (2**30 if sys.platform == "darwin" else 2**20)
    runs = args.rows * args.seeds
    report(
        args,
        [
            rounds.row(
                "a job by the runner, more", lambda s: s["runner"] - s["by hand"], "< 3", "s"
            ),
            rounds.row(f"tables and report of {runs:,} runs", lambda s: s["report"], "< 10", "s"),
            Row("their memory", {"wall": gibibytes}, "< 1", "GiB"),
            rounds.row(f"bench status of {runs:,} jobs", lambda s: s["status"], "< 1", "s"),
        ],
        rounds,
        runs=runs,
        test_images=args.images,
        jobs=args.jobs,
    )


if __name__ == "__main__":
    main()

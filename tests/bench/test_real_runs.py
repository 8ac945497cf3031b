"""Whole suites of real trainings: stages, Slurm's stand-in, SIGKILL, reproduction.

The smoke suite is run twice here, the second time through ten kills: half an hour on one core.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from ltbench.bench.run.jobs import Store
from ltbench.bench.score import claims, leaderboard
from ltbench.bench.score.results import of_plan
from ltbench.bench.show import tables

pytestmark = pytest.mark.slow

SUITE = {
    "seeds": [0, 1],
    "overrides": {"trainer.accelerator": "cpu", "trainer.max_epochs": 3, "data.largest": 60},
    "rows": {
        "ce": {"config": "ce_digits"},
        "vs": {"config": "vssam_digits", "overrides": {"model.gradient_rule": None}},
    },
}


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return path


def test_a_job_is_reproduced_from_its_record_alone(suite, program):
    words = [program, "bench", "run", str(suite), "--seeds", "3"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    record = next(Path("runs/bench").glob("vs-*/*/record.json"))
    job = json.loads(record.read_text())["job_id"]
    words = [program, "bench", "reproduce", job[:10]]
    for attempt in (1, 2):  # the second time too it is trained, and compared with the first of all
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the same to the last digit" in done.stdout
        assert len(list(Path("runs/reproduced").glob("*/*/record.json"))) == attempt


def test_submitit_runs_a_suite_and_goes_on_after_preemption(suite, program):
    words = [program, "bench", "run", str(suite), "--seeds", "0", "--jobs", "1"]
    words += ["--launcher", "slurm", "--slurm.cluster", "local", "--trainer.max_epochs", "40"]
    runner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    record, end = None, time.monotonic() + 900
    while record is None or record["epochs"] < 2:
        assert time.monotonic() < end
        time.sleep(0.2)
        paths = list(Path("runs/bench").glob("*/*/record.json"))
        record = json.loads(paths[0].read_text()) if paths else None
    notes = json.loads((paths[0].parents[1] / "job.json").read_text())
    parent = re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{notes['pid']}/status").read_text(), re.M)
    os.kill(int(parent[1]), signal.SIGUSR2)  # as Slurm does before it takes the node back
    out, _ = runner.communicate(timeout=1500)
    assert runner.returncode == 0, out
    assert "Going on from" in (paths[0].parents[1] / "log.txt").read_text()
    assert len(list(Path("runs/bench").glob("*/*/record.json"))) == 2


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, program):
    """The working folder of `make smoke`, undisturbed: its jobs are in ``runs/bench``."""
    home = tmp_path_factory.mktemp("smoke")
    words, environment = [program, "bench", "run", "smoke"], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return home


def everything_but_times(folder):
    """What the leaderboard says, without places, times and memory."""
    store = Store(folder)
    board = leaderboard.build(of_plan(store.load("smoke"), store))
    content = json.loads(tables.as_json(board, claims.judge(claims.read(), board)))
    for line in (line for table in content["tables"] for line in table["lines"]):
        line["cost"] = {name: line["cost"][name] for name in ("images_seen", "parameters")}
        line["runs"] = [(run["job_id"], run["seed"]) for run in line["runs"]]
    return content


def test_the_smoke_suite_is_complete(smoke, program):
    """What `make smoke` runs: every method, all stages, a table and a report."""
    words = [program, "leaderboard", "smoke", "--output", "smoke.html"]
    assert subprocess.run(words, cwd=smoke, check=False).returncode == 0
    methods = subprocess.run(
        [program, "list", "methods", "--json"], capture_output=True, text=True, check=True
    ).stdout
    records = [json.loads(p.read_text()) for p in smoke.glob("runs/bench/*/*/record.json")]
    assert {record["method"] for record in records} == set(json.loads(methods))
    assert everything_but_times(smoke / "runs/bench")["problems"] == []


def test_the_smoke_suite_killed_at_ten_random_moments_has_the_table_of_an_undisturbed_one(
    smoke, tmp_path, monkeypatch, program, kill_at_random
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notes = [json.loads(path.read_text()) for path in smoke.glob("runs/bench/*/job.json")]
    ends = [note["began"] + note["seconds"] for note in notes]
    whole = max(ends) - min(note["began"] for note in notes)
    last = kill_at_random([program, "bench", "run", "smoke"], 7, 10, 2 * whole / 10)
    assert last.returncode == 0, last.stdout
    calm = everything_but_times(smoke / "runs/bench")
    assert sum(len(table["lines"]) for table in calm["tables"]) > 10
    assert everything_but_times(Path("runs/bench")) == calm

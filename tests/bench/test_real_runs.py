"""Whole suites of real trainings: stages, Slurm's stand-in, SIGKILL, reproduction."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from ltbench.bench import leaderboard, tables
from ltbench.bench.jobs import Store
from ltbench.bench.results import of_plan

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


def table_of(folder):
    store = Store(Path(folder))
    return tables.as_csv(leaderboard.build(of_plan(store.load("mine"), store)))


def test_a_suite_killed_at_ten_random_moments_has_the_table_of_an_undisturbed_one(
    suite, program, kill_at_random
):
    words = [program, "bench", "run", str(suite), "--jobs", "2", "--folder"]
    calm = subprocess.run([*words, "calm"], capture_output=True, text=True, check=False)
    assert calm.returncode == 0, calm.stdout
    longest = 1.5 * max(
        json.loads(path.read_text())["seconds"] for path in Path("calm").glob("*/job.json")
    )
    last = kill_at_random([*words, "rough"], 7, 10, longest)
    assert last.returncode == 0, last.stdout
    assert table_of("rough") == table_of("calm")


def test_a_job_is_reproduced_from_its_record_alone(suite, program):
    words = [program, "bench", "run", str(suite), "--seeds", "3"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    record = next(Path("runs/bench").glob("vs-*/*/record.json"))
    job = json.loads(record.read_text())["job_id"]
    done = subprocess.run(
        [program, "bench", "reproduce", job[:10]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same to the last digit" in done.stdout


def test_submitit_runs_a_suite_and_goes_on_after_preemption(suite, program):
    words = [program, "bench", "run", str(suite), "--seeds", "0", "--jobs", "1"]
    words += ["--launcher", "slurm", "--slurm.cluster", "local", "--trainer.max_epochs", "40"]
    runner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    record, end = None, time.monotonic() + 900
    while record is None or record["epochs"] < 2:
        assert time.monotonic() < end
        time.sleep(0.2)
        found = list(Path("runs/bench").glob("*/*/record.json"))
        record = json.loads(found[0].read_text()) if found else None
    notes = json.loads((found[0].parents[1] / "job.json").read_text())
    parent = re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{notes['pid']}/status").read_text(), re.M)
    os.kill(int(parent[1]), signal.SIGUSR2)  # as Slurm does before it takes the node back
    out, _ = runner.communicate(timeout=1500)
    assert runner.returncode == 0, out
    assert "Going on from" in (found[0].parents[1] / "log.txt").read_text()
    assert len(list(Path("runs/bench").glob("*/*/record.json"))) == 2


def test_the_smoke_suite_is_complete(tmp_path, monkeypatch, program):
    """What `make smoke` runs: every method, all stages, a table and a report."""
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([program, "bench", "run", "smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    words = [program, "leaderboard", "smoke", "--output", "smoke.html"]
    assert subprocess.run(words, check=False).returncode == 0
    methods = subprocess.run(
        [program, "list", "methods", "--json"], capture_output=True, text=True, check=True
    ).stdout
    records = [json.loads(p.read_text()) for p in Path("runs/bench").glob("*/*/record.json")]
    assert {record["method"] for record in records} == set(json.loads(methods))

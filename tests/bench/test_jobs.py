"""A job's state is read off its folder, and its lock lives and dies with its process."""

import json
import signal
import subprocess
import sys
import time

import pytest
from support import record_of

from ltbench.bench.run import jobs
from ltbench.bench.run.suite import Job
from ltbench.errors import UserError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def until(condition, seconds=20):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def finished(folder, words):
    process = jobs.start(folder, words, {})
    jobs.ended(folder, process.wait())
    return jobs.read_state(folder)


def test_a_job_that_nobody_started_waits(tmp_path):
    assert jobs.read_state(tmp_path / "x").status == "waiting"


def test_a_lock_is_held_by_the_process_alone_and_ends_with_it(tmp_path):
    process = jobs.start(tmp_path, SLEEP, {})
    assert jobs.read_state(tmp_path).status == "running"
    assert jobs.start(tmp_path, SLEEP, {}) is None
    process.kill()
    process.wait()
    assert jobs.read_state(tmp_path).status == "stopped"  # nobody was there to note its end
    again = jobs.start(tmp_path, [sys.executable, "-c", ""], {})
    assert again.wait() == 0


def test_two_that_start_at_once_are_one(tmp_path):
    started = [jobs.start(tmp_path, SLEEP, {}) for _ in range(5)]
    (process,) = filter(None, started)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("print('loading'); import sys; sys.exit('error: no such folder.')", "no such folder."),
        ("raise ValueError('what')", "ValueError: what"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL)"),
    ],
)
def test_a_failure_is_named(tmp_path, code, cause):
    state = finished(tmp_path, [sys.executable, "-c", code])
    assert (state.status, state.cause) == ("failed", cause)


def test_a_failed_run_says_what_its_record_says(tmp_path):
    (tmp_path / "run").mkdir()
    record = record_of(status="failed", cause="ValueError: the loss is NaN")
    (tmp_path / "run/record.json").write_text(json.dumps(record))
    state = finished(tmp_path, [sys.executable, "-c", "import sys; sys.exit(1)"])
    assert state.cause == "ValueError: the loss is NaN"


def test_a_finished_run_counts_though_a_later_one_was_cut_off(tmp_path):
    for name, status in (("a", "done"), ("b", "running")):
        (tmp_path / name).mkdir()
        record = record_of(status=status)
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/record.json").write_text('{"schema": 1, "sta')
    state = jobs.read_state(tmp_path)
    assert (state.status, state.run.name) == ("done", "a")
    assert jobs.start(tmp_path, SLEEP, {}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1, "stat', "record.json"),
        ('{"schema": 1, "loss": 3}', "'name'"),
        ('{"schema": 99, "status": "done"}', "schema 99"),
    ],
)
def test_a_job_whose_record_cannot_be_read_has_failed_and_names_it(tmp_path, text, message):
    finished(tmp_path, [*SLEEP[:2], "pass"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(text)
    state = jobs.read_state(tmp_path)
    assert state.status == "failed"
    assert "run/record.json" in state.cause
    assert message in state.cause


def test_a_failure_is_forgotten_when_the_job_is_started_again(tmp_path):
    assert finished(tmp_path, [sys.executable, "-c", "1/0"]).status == "failed"
    process = jobs.start(tmp_path, SLEEP, {})
    assert jobs.read_state(tmp_path).status == "running"
    process.kill()
    process.wait()
    assert jobs.read_state(tmp_path).status == "stopped"


def test_the_seconds_of_all_starts_are_summed_and_all_output_is_kept(tmp_path):
    code = "import time; print('{}'); time.sleep(0.05); 1/0"
    first = finished(tmp_path, [sys.executable, "-c", code.format("one")]).notes["seconds"]
    second = finished(tmp_path, [sys.executable, "-c", code.format("two")]).notes["seconds"]
    assert second > first > 0
    log = (tmp_path / "log.txt").read_text()
    assert log.index("one") < log.index("two")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent")
def test_a_killed_runner_leaves_no_stray_process(tmp_path):
    code = (
        "import pathlib, sys, time; from ltbench.bench.run import jobs; "
        f"jobs.start(pathlib.Path({str(tmp_path)!r}), {SLEEP!r}, {{}}); time.sleep(60)"
    )
    runner = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: (tmp_path / "job.json").exists())
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    until(lambda: not jobs.is_locked(tmp_path))  # which the process held


def test_the_command_line_names_run_folders_and_keeps_types(tmp_path):
    overrides = {
        "a": "{k}/last.ckpt",
        "b": {"x": [1, None]},
        "c": True,
        "d": "two words",
        "e": 1e-4,
    }
    job = Job("key", "mine", 3, "config.yaml", overrides, ["k"])
    words = jobs.command(job, tmp_path, {"k": tmp_path / "run"})
    assert words[3:6] == ["fit", "--config", "config.yaml"]
    assert f"--a={tmp_path}/run/last.ckpt" in words
    assert '--b={"x": [1, null]}' in words
    assert {"--c=true", "--d=two words", "--e=0.0001", "--seed_everything=3"} <= set(words)


def test_a_job_is_found_again_under_another_name(tmp_path):
    key = "0123456789abcdef"
    (tmp_path / f"old-name-seed0-{key}").mkdir()
    store = jobs.Store(tmp_path)
    assert store.job_folder(Job(key, "new", 0, "c", {})).name == f"old-name-seed0-{key}"
    assert store.job_folder(Job("f" * 16, "new", 1, "c", {})).name == f"new-seed1-{'f' * 16}"


def test_a_damaged_plan_is_named(tmp_path):
    (tmp_path / "mine.json").write_text('{"suite": "mine"')
    with pytest.raises(UserError, match=r"mine\.json"):
        jobs.Store(tmp_path).load("mine")
    with pytest.raises(UserError, match="suite yours"):
        jobs.Store(tmp_path).load("yours")

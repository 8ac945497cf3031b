"""The runner: stages in order, nothing twice, and nothing lost whenever it is killed.

``python -m ltbench fit`` is a stand-in here (``workshop``), whose result shows each epoch that is
lost or run twice; ``test_real_runs`` does the same with real trainings.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ltbench.bench.run import suite
from ltbench.bench.run.jobs import Store
from ltbench.bench.run.launchers import Local
from ltbench.bench.run.runner import Runner
from ltbench.bench.score import leaderboard
from ltbench.bench.score.results import of_plan
from ltbench.bench.show import tables
from ltbench.errors import UserError

STAGED = {
    "teacher": {"config": 3},
    "student": {
        "stages": {
            "teacher": {"config": 3},
            "own": {"config": {"epochs": 2, "term": 5}},
            "last": {
                "config": {"epochs": 3, "term": 9},
                "overrides": {"model.start": "{own}", "model.teacher": "{teacher}"},
            },
        }
    },
    "plain": {"config": {"epochs": 4, "term": 2}},
}


def plan_of(path, seeds=None):
    return suite.plan(suite.read(Path(path)), seeds)


def run(path, seeds=None, jobs=2, **options):
    plan, store = plan_of(path, seeds), Store(Path("runs"))
    store.save(plan)
    return plan, Runner(plan, store, Local(jobs), **options).run()


def epochs_run():
    """(name, seed, epoch) of every epoch that was run."""
    lines = Path("epochs.log").read_text().splitlines()
    return [tuple(line.split()[:3]) for line in lines]


def results(folder="runs"):
    """Name and seed -> result, of every record."""
    outcome = {}
    for path in Path(folder).glob("*/*/record.json"):
        record = json.loads(path.read_text())
        outcome[record["name"], record["seed"]] = (record["status"], record["value"])
    return outcome


def test_stages_run_in_order_and_shared_ones_once(workshop):
    _, states = run(workshop(STAGED, seeds=[0, 1]))
    assert {state.status for state in states.values()} == {"done"}
    order = list(dict.fromkeys((name, seed) for name, seed, _ in epochs_run()))
    names = Counter(name for name, _ in order)
    assert names == {"teacher": 2, "student.own": 2, "student": 2, "plain": 2}
    for seed in "01":
        assert order.index(("student", seed)) > order.index(("student.own", seed))
        assert order.index(("student", seed)) > order.index(("teacher", seed))
    assert len(set(epochs_run())) == len(epochs_run())


def test_what_is_done_is_not_run_again(workshop):
    path = workshop(STAGED)
    run(path)
    before = epochs_run()
    _, states = run(path)
    assert epochs_run() == before
    run(path, seeds=[0, 5])
    assert {seed for _, seed, _ in epochs_run()[len(before) :]} == {"5"}
    assert {state.status for state in states.values()} == {"done"}


def test_a_failure_blocks_what_needs_it_and_nothing_else(workshop):
    rows = {
        "bad": {"config": {"epochs": 1, "fail": True}},
        "needs": {"config": 1, "overrides": {"model.start": "{bad}"}},
        "needs_too": {"config": 1, "overrides": {"model.start": "{needs}"}},
        "good": {"config": 1},
    }
    path = workshop(rows)
    plan, states = run(path)
    outcome = {plan.jobs[key].name: state for key, state in states.items()}
    assert {name: state.status for name, state in outcome.items()} == {
        **{"bad": "failed", "needs": "blocked", "needs_too": "blocked", "good": "done"}
    }
    assert outcome["bad"].cause == "it was asked to fail."
    # The cause is mended: what failed runs again, and then what it had blocked.
    bad = next(p for p in Path().glob("config*") if "fail" in p.read_text())
    content = json.loads(bad.read_text())
    store = Store(Path("runs"))
    assert {s.status for s in store.states(plan).values()} == {"done", "failed", "blocked"}
    bad.write_text(json.dumps({**content, "fail": False}))
    _, states = run(path)
    assert {state.status for state in states.values()} == {"done"}


def test_only_failed_leaves_the_rest_alone(workshop):
    path = workshop({"bad": {"config": {"epochs": 1, "fail": True}}, "good": {"config": 1}})
    run(path)
    plan = plan_of(path, [0, 1])
    states = Runner(plan, Store(Path("runs")), Local(1), only_failed=True).run()
    outcome = {(plan.jobs[k].name, plan.jobs[k].seed): s.status for k, s in states.items()}
    assert outcome["good", 1] == "waiting"
    assert outcome["bad", 0] == "failed"
    assert outcome["bad", 1] == "waiting"


def test_a_run_that_ends_well_without_a_result_has_failed(workshop):
    path = workshop({"odd": {"config": 1}})
    Path("ltbench/__main__.py").write_text("")
    _, states = run(path)
    (state,) = states.values()
    assert (state.status, state.cause) == ("failed", "it left no finished record")


def test_two_runners_on_one_folder_do_not_run_a_job_twice(workshop, program):
    rows = {f"r{n}": {"config": {"epochs": 2, "term": n, "sleep": 0.05}} for n in range(6)}
    path = workshop(rows)
    words = [program, "bench", "run", path, "--folder", "runs", "--jobs", "2"]
    runners = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [runner.wait(60) for runner in runners] == [0, 0]
    assert sorted(set(epochs_run())) == sorted(epochs_run())
    assert {status for status, _ in results().values()} == {"done"}


def test_the_exit_code_says_whether_everything_is_done(workshop, ltbench):
    good = workshop({"good": {"config": 1}}, "good")
    bad = workshop({"bad": {"config": {"epochs": 1, "fail": True}}}, "bad")
    assert ltbench("bench", "run", good, "--folder", "runs").code == 0
    done = ltbench("bench", "run", bad, "--folder", "runs")
    assert done.code == 1
    assert "failed bad seed 0: it was asked to fail." in done.out
    assert ltbench("bench", "run", bad, "--folder", "runs", "--only-failed").code == 1


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_runner_goes_on_where_it_was(workshop, program, kill):
    path = workshop({"a": {"config": {"epochs": 12, "sleep": 0.2}}, "b": STAGED["student"]})
    words = [program, "bench", "run", path, "--folder", "runs"]
    runner = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not Path("epochs.log").exists() or len(epochs_run()) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    runner.send_signal(kill)
    assert runner.wait(30) == {signal.SIGKILL: -9}.get(kill, 128 + kill)
    plan, states = run(path)
    assert {state.status for state in states.values()} == {"done"}
    assert len(plan.jobs) == len(results())


def test_a_job_that_was_asked_to_end_is_queued_again(workshop):
    plan, states = run(workshop({"a": {"config": {"epochs": 4, "asked": 2}}}))
    assert {state.status for state in states.values()} == {"done"}
    assert [epoch for *_, epoch in epochs_run()] == ["1", "3", "4"]
    (job,) = plan.jobs.values()
    assert (Store(Path("runs")).job_folder(job) / "log.txt").read_text().count("\n$ ") == 2


def table_of(folder):
    store = Store(Path(folder))
    return tables.as_csv(leaderboard.build(of_plan(store.load("mine"), store)))


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_suite_that_is_killed_has_the_table_of_an_undisturbed_one(
    workshop, program, kill_at_random, times
):
    path = workshop(STAGED, seeds=[0, 1])
    words = [program, "bench", "run", path, "--folder"]
    assert subprocess.run([*words, "calm"], stdout=subprocess.DEVNULL, check=False).returncode == 0
    last = kill_at_random([*words, "rough"], times, times, 1.2)
    assert last.returncode == 0, last.stderr
    assert table_of("rough") == table_of("calm")
    assert results("rough") == results("calm")


def test_gpus_are_packed_one_job_each(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    launcher = Local()
    code = "import os, time; print('gpu', os.environ['CUDA_VISIBLE_DEVICES']); time.sleep({})"
    seconds = [60, 60]
    handles = []
    for n, wait in enumerate(seconds):
        assert launcher.has_room()
        words = [sys.executable, "-uc", code.format(wait)]
        handles.append(launcher.start(tmp_path / str(n), words))
    assert not launcher.has_room()
    handles[0].stop()
    while handles[0].poll() is None:
        time.sleep(0.01)
    assert launcher.has_room()
    handles.append(launcher.start(tmp_path / "2", [sys.executable, "-uc", code.format(0)]))
    while handles[2].poll() is None:
        time.sleep(0.01)
    handles[1].stop()
    while handles[1].poll() is None:
        time.sleep(0.01)
    assert "gpu 3" in (tmp_path / "2/log.txt").read_text()


def test_jobs_share_each_gpu_where_that_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    launcher = Local(pack=2)
    code = "import os; print('gpu', os.environ['CUDA_VISIBLE_DEVICES'])"
    handles = []
    while launcher.has_room():
        folder = tmp_path / str(len(handles))
        handles.append(launcher.start(folder, [sys.executable, "-c", code]))
    while any(handle.poll() is None for handle in handles):
        time.sleep(0.01)
    message = [(tmp_path / str(n) / "log.txt").read_text().split()[-1] for n in range(len(handles))]
    assert sorted(message) == ["3", "3", "7", "7"]


def test_without_a_gpu_none_can_be_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="--jobs"):
        Local(pack=2)


@pytest.mark.parametrize("given", [None, "glibc.malloc.check=1"])
def test_jobs_on_cpus_ask_for_large_pages(monkeypatch, tmp_path, given):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    code = "import os; print(os.environ['GLIBC_TUNABLES'])"
    handle = Local(1).start(tmp_path, [sys.executable, "-c", code])
    while handle.poll() is None:
        time.sleep(0.01)
    assert (tmp_path / "log.txt").read_text().endswith(f"{given or 'glibc.malloc.hugetlb=1'}\n")


@pytest.mark.parametrize(
    ("given", "jobs", "threads"), [(None, 1, 0), ("1", 1, 1), (None, 10**6, 1)]
)
def test_threads_are_divided_among_jobs(monkeypatch, given, jobs, threads):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    cores = len(os.sched_getaffinity(0))
    assert Local(jobs).threads == (threads or cores)
    assert Local().slots == cores

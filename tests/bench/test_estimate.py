"""How long jobs take follows from what was measured."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltbench.bench.run import estimate
from ltbench.bench.run.jobs import State
from ltbench.bench.run.suite import Job, Plan


def plan_of(*jobs):
    return Plan("x", {job.key: job for job in jobs}, {})


def job(key, needs=(), recipe=""):
    return Job(key, key, 0, "c.yaml", {}, list(needs), recipe or key)


def record(epochs, total, seconds):
    return {"epochs": epochs, "wall_seconds": seconds, "config": {"trainer": {"max_epochs": total}}}


def test_another_seed_of_a_recipe_tells_how_long_a_job_takes():
    plan = plan_of(job("a", recipe="r"), job("b", recipe="r"), job("c", recipe="r"), job("d"))
    states = {
        "a": State("done", notes={"seconds": 10.0}),
        "b": State("done", notes={"seconds": 20.0}),
        "c": State("waiting"),
        "d": State("waiting"),
    }
    whole = estimate.totals(plan, states)
    assert whole["c"] == 15
    assert "d" not in whole
    assert estimate.left(plan, states, whole) == {"c": 15, "d": 15}
    assert estimate.totals(plan, states, {"d": 7.0})["d"] == 7


def test_a_jobs_own_epochs_tell_more():
    plan = plan_of(job("a", recipe="r"), job("b", recipe="r"))
    states = {
        "a": State("done", notes={"seconds": 100.0}),
        "b": State("running", record=record(2, 8, 6.0)),
    }
    whole = estimate.totals(plan, states)
    assert whole["b"] == 24
    assert estimate.left(plan, states, whole)["b"] == 18


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.integers(1, 10), st.randoms())
def test_the_time_until_the_end_is_between_its_bounds(seconds, slots, draw):
    planned = []
    for n in range(len(seconds)):
        needs = [str(k) for k in range(n) if draw.random() < 0.3]
        planned.append(job(str(n), needs))
    plan, remaining = plan_of(*planned), {str(n): s for n, s in enumerate(seconds)}
    chain = {}
    for key, each in plan.jobs.items():
        chain[key] = remaining[key] + max((chain[need] for need in each.needs), default=0)
    span = estimate.makespan(plan, remaining, slots)
    assert span >= max(max(chain.values()), sum(seconds) / slots) - 1e-6
    assert span <= sum(seconds) + 1e-6
    assert estimate.makespan(plan, remaining, 1) == pytest.approx(sum(seconds))


def test_nothing_left_takes_no_time():
    assert estimate.makespan(plan_of(), {}, 2) == 0


def test_a_dry_run_times_a_few_steps_and_runs_nothing(workshop, ltbench):
    rows = {"a": {"config": {"epochs": 2000, "sleep": 0.1}}, "b": {"config": 8}}
    path = workshop(rows, seeds=[0, 1])
    done = ltbench("bench", "run", path, "--folder", "runs", "--dry-run", "--jobs", "2")
    assert done.code == 0, done.err
    assert "4 of 4 jobs left" in done.out
    assert "unknown" not in done.out
    assert re.search(r"a +1 +waiting +0:0[3-9]:", done.out)
    assert re.search(r"b +1 +waiting +0:00:0", done.out)
    assert ltbench("bench", "status", "mine", "--folder", "runs").code == 2  # it was not run
    assert [p.name for p in Path("runs").iterdir()] == [".timings.json"]
    again = ltbench("bench", "run", path, "--folder", "runs", "--dry-run", "--jobs", "2")
    assert again.out.endswith(done.out.partition("\n")[2])


def test_a_dry_run_says_what_cannot_be_timed(workshop, ltbench):
    path = workshop({"bad": {"config": {"epochs": 1, "fail": True}}})
    done = ltbench("bench", "run", path, "--folder", "runs", "--dry-run")
    assert "bad cannot be timed: it was asked to fail." in done.out
    assert "1 of 1 jobs left." in done.out


def test_a_dry_run_of_what_failed_counts_that_alone(workshop, ltbench):
    path = workshop({"bad": {"config": {"epochs": 1, "fail": True}}, "good": {"config": 1}})
    ltbench("bench", "run", path, "--rows", "bad")
    done = ltbench("bench", "run", path, "--dry-run", "--only-failed")
    assert "1 of 2 jobs left" in done.out
    assert re.search(r"good +0 +waiting *\n", done.out)

"""Heads on finished runs: their rows, their jobs, their place in a leaderboard."""

import shutil
from dataclasses import replace

import pytest
from support import change_record, run_command

from ltbench.bench.run import heads, jobs
from ltbench.bench.run import suite as suites
from ltbench.bench.run.command import bench_command
from ltbench.bench.run.jobs import Store
from ltbench.bench.score import leaderboard, posthoc, results
from ltbench.errors import UserError


@pytest.fixture
def suite(digits_run, tmp_path, monkeypatch):
    """A suite of one row with a finished run: its plan and its store."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(digits_run.config, tmp_path / "tiny.yaml")
    (tmp_path / "mine.yaml").write_text("rows: {ce: {config: tiny.yaml}}")
    plan, store = suites.plan(suites.read(suites.find("mine.yaml"))), Store(tmp_path / "store")
    (job,) = plan.jobs.values()
    shutil.copytree(digits_run.folder, store.job_folder(job) / digits_run.folder.name)
    shutil.rmtree(store.job_folder(job) / digits_run.folder.name / "features", ignore_errors=True)
    return plan, store


def test_each_head_is_a_row_below_its_start_and_free_corrections_agree(suite, tmp_path):
    plan, store = suite
    names = ["crt", "ncm", "taunorm", "posthocla"]
    plan, left_out = heads.with_heads(plan, store.states(plan), names, {})
    assert left_out == []
    assert [*plan.rows] == ["ce", *(f"ce+{name}" for name in names)]
    files = {}
    for job in [job for job in plan.jobs.values() if job.needs]:
        runs = {need: store.states(plan)[need].run for need in job.needs}
        words = jobs.command(job, store.job_folder(job), runs)
        done = run_command(*words[3:], cwd=tmp_path)
        assert done.code == 0, done.err
        kept = (store.states(plan)[job.needs[0]].run / "features").iterdir()
        files[job.name] = {path.name: path.stat().st_mtime_ns for path in kept}
    assert len(files["ce+crt"]) == 3  # train, val and test
    assert all(stored == files["ce+crt"] for stored in files.values())
    store.save(plan)
    scored = results.of_plan(store.load("mine"), store)
    assert scored.problems == []
    assert {row.name: row.start for row in scored.rows if row.start} == dict.fromkeys(
        (f"ce+{name}" for name in names), "ce"
    )
    by_name = {row.name: row.runs[0] for row in scored.rows}
    free = posthoc.baselines([by_name["ce"]], [])["accuracy"]
    for name, rule in (("posthocla", "logit adjustment"), ("taunorm", "tau-normalisation")):
        accuracy = by_name[f"ce+{name}"].metrics["accuracy"]
        assert accuracy == pytest.approx(free[rule]["value"])
    _, left_out = heads.with_heads(plan, store.states(plan), ["crt"], {})
    assert "ce gets no crt" in left_out[0]  # it has one


def test_what_gets_no_head_is_said(suite):
    plan, store = suite
    (job,) = plan.jobs.values()
    (run,) = store.job_folder(job).glob("*/")
    states = store.states(plan)
    failed = {job.key: replace(states[job.key], status="failed")}
    assert heads.with_heads(plan, failed, ["crt"], {}) == (plan, [])
    change_record(run, data__images={"train": 9, "test": 9})
    same, (why,) = heads.with_heads(plan, store.states(plan), ["posthocla"], {})
    assert same == plan
    assert "validation" in why  # never by test images
    shutil.rmtree(run / "checkpoints")
    same, (why,) = heads.with_heads(plan, states, ["crt", "ncm"], {})
    assert same == plan
    assert "crt, ncm" in why
    assert "weights" in why
    with pytest.raises(UserError, match="cRT"):
        bench_command(["run", "mine.yaml", "--heads", "cRT"])


def test_heads_stand_below_their_start_best_first(make_run):
    rows = []
    for name, start, recalls in (
        ("vs", "", (0.9, 0.9, 0.9)),
        ("ce", "", (0.5, 0.5, 0.1)),
        ("ce+ncm", "ce", (0.6, 0.5, 0.5)),
        ("ce+crt", "ce", (0.99, 0.99, 0.99)),
        ("paco+crt", "paco", (0.7, 0.6, 0.6)),
    ):
        runs = [results.read(make_run(name, seed, recalls)) for seed in (0, 1)]
        rows.append(results.Row(name, "", runs, start=start))
    (table,) = leaderboard.build(results.Results("mine", rows, [])).tables
    assert [line.name for line in table.lines] == ["vs", "paco+crt", "ce", "ce+crt", "ce+ncm"]
    assert {line.name: line.rank for line in table.lines}["ce+crt"] == 1
    assert table.p.shape == (5, 5)

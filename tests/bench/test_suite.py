"""A suite becomes jobs: each after those it needs, each once, known by what it is."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ltbench import catalog, shipped
from ltbench.bench.run import suite
from ltbench.bench.run.jobs import command
from ltbench.errors import UserError
from ltbench.records import identity


@pytest.fixture
def planned(tmp_path):
    """The writer of a suite over one config, and its plan."""
    (tmp_path / "base.yaml").write_text(
        "model: {class_path: ERM, init_args: {loss: vs_loss, rho: {a: 1, b: 2}}}\n"
        "trainer: {max_epochs: 5}\n"
    )

    def plan(rows, seeds=(0,), given=None, only=None, **more):
        path = tmp_path / "mine.yaml"
        rows = {name: {"config": "base.yaml", **row} for name, row in rows.items()}
        for row in rows.values():
            if "stages" in row:
                del row["config"]
                row["stages"] = {k: {"config": "base.yaml", **v} for k, v in row["stages"].items()}
        path.write_text(
            yaml.safe_dump({"rows": rows, "seeds": list(seeds), **more}, sort_keys=False)
        )
        return suite.plan(suite.read(path, given), rows=only)

    return plan


def test_a_row_and_a_seed_are_a_job(planned):
    plan = planned({"ce": {}, "vs": {"overrides": {"model.loss": "ce"}}}, seeds=[3, 4])
    assert [(job.name, job.seed) for job in plan.jobs.values()] == [
        *(("ce", 3), ("ce", 4), ("vs", 3), ("vs", 4))
    ]
    assert [set(of_row) for of_row in plan.rows.values()] == [{3, 4}, {3, 4}]


def test_overrides_come_in_the_order_suite_row_stage_command_line(planned):
    rows = {"a": {"overrides": {"y": 2, "z": 2}, "stages": {"a": {"overrides": {"z": 3, "u": 3}}}}}
    plan = planned(rows, overrides={"x": 1, "y": 1, "z": 1, "u": 1}, given={"u": 4})
    (job,) = plan.jobs.values()
    assert job.overrides == {"x": 1, "y": 2, "z": 3, "u": 4}


def test_a_stage_that_rows_share_is_one_job_with_the_name_of_its_row(planned):
    start = {"overrides": {"model.start": "{first}"}}
    plan = planned(
        {
            "one": {"stages": {"first": {}, "second": start}},
            "plain": {},
            "two": {"stages": {"first": {}, "last": {"overrides": {"model.start": "{first}/x"}}}},
        }
    )
    names = [job.name for job in plan.jobs.values()]
    assert sorted(names) == ["one", "plain", "two"]
    shared = next(job for job in plan.jobs.values() if job.name == "plain")
    assert [plan.rows[row][0][0] for row in ("one", "plain", "two")] == [shared.key] * 3
    for name in ("one", "two"):
        (job,) = (job for job in plan.jobs.values() if job.name == name)
        assert job.needs == [shared.key]
        assert job.overrides["model.start"].startswith(f"{{{shared.key}}}")


def test_a_reference_is_to_a_stage_of_the_row_else_to_a_row_else_to_a_stage_of_another(planned):
    rows = {
        "base": {"stages": {"x": {"overrides": {"t": 1}}, "y": {"overrides": {"t": 2}}}},
        "a": {"overrides": {"from": "{base}"}},
        "b": {"overrides": {"from": "{base.x}"}},
        "c": {"stages": {"base": {"overrides": {"t": 3}}, "z": {"overrides": {"from": "{base}"}}}},
    }
    plan = planned(rows)
    starts = {row: plan.jobs[plan.rows[row][0][-1]].needs for row in "abc"}
    assert starts["a"] == [plan.rows["base"][0][1]]
    assert starts["b"] == [plan.rows["base"][0][0]]
    assert starts["c"] == [plan.rows["c"][0][0]]


def test_chosen_rows_bring_the_stages_that_they_need_and_no_more(planned):
    rows = {
        "other": {"overrides": {"x": 1}},
        "pair": {"stages": {"first": {"overrides": {"x": 2}}, "second": {"overrides": {"x": 3}}}},
        "last": {"overrides": {"x": "{pair.first}"}},
    }
    plan = planned(rows, only=["last"])
    assert [job.name for job in plan.jobs.values()] == ["pair.first", "last"]
    assert list(plan.rows) == list(plan.families) == ["last"]
    with pytest.raises(UserError, match=r"lsat.*'last'"):
        planned(rows, only=["lsat"])


def test_a_stage_with_a_seed_of_its_own_runs_once_for_all_seeds(planned):
    plan = planned(
        {"a": {"stages": {"t": {"seed": 7}, "s": {"overrides": {"t": "{t}"}}}}}, seeds=[0, 1, 2]
    )
    assert sorted(job.seed for job in plan.jobs.values()) == [0, 1, 2, 7]


@pytest.mark.parametrize(
    "overrides",
    [
        {"trainer.max_epochs": 5},
        {"model.init_args.loss": "vs_loss"},
        {"model.loss": "vs_loss"},
        {"model.rho": {"b": 2, "a": 1}},
        {"trainer": {"max_epochs": 5}},
    ],
)
def test_one_experiment_has_one_key_however_it_is_spelt(planned, overrides):
    assert planned({"a": {"overrides": overrides}}).jobs.keys() == planned({"b": {}}).jobs.keys()


@pytest.mark.parametrize(
    "row",
    [
        {"overrides": {"trainer.max_epochs": 6}},
        {"overrides": {"model.rho.a": 3}},
        {"overrides": {"model.rho": None}},
        {"seed": 1},
        {"overrides": {"model.start": "{other}"}},
    ],
)
def test_what_changes_the_result_changes_the_key(planned, row):
    plan = planned({"a": {}, "other": {"overrides": {"model.loss": "x"}}, "b": row})
    assert plan.rows["a"][0] != plan.rows["b"][0]


def test_a_job_is_another_one_when_its_recipe_was_mended(planned, monkeypatch):
    """So a runner does not take a result of before for done, of this stage or of one after it."""
    rows = {
        "ce": {"config": "ce_digits"},
        "paco": {"config": "paco_digits"},
        "student": {"config": "deitlt_digits", "overrides": {"model.teacher.path": "{paco}"}},
        "grey": {"config": "ce_digits", "overrides": {"data.augment": ["AutoAugment"]}},
        "fixmatch": {"config": "fixmatch_digits"},
        "warm": {
            "config": "ce_digits",
            "overrides": {"model.lr_schedule": {"class_path": "Cosine", "warmup": 2}},
        },
    }
    new = {job.name: (job.key, job.recipe) for job in planned(rows).jobs.values()}
    monkeypatch.setattr(identity, "_REVISED", {})
    old = {job.name: (job.key, job.recipe) for job in planned(rows).jobs.values()}
    same = {name for name in new if not {*new[name]} ^ {*old[name]}}
    assert same == {"ce"}
    assert all(not {*new[name]} & {*old[name]} for name in new.keys() - same)


def test_a_job_is_another_one_when_what_it_starts_from_is(planned):
    def last(epochs):
        rows = {
            "t": {"overrides": {"trainer.max_epochs": epochs}},
            "s": {"overrides": {"start": "{t}"}},
        }
        plan = planned(rows, seeds=[0, 1])
        return [plan.jobs[plan.rows["s"][seed][-1]] for seed in (0, 1)]

    (a, b), (c, _) = last(1), last(2)
    assert len({a.key, b.key, c.key}) == 3
    assert a.recipe == b.recipe != c.recipe


@given(st.data())
def test_every_job_comes_after_those_it_needs(data):
    names = [f"r{n}" for n in range(data.draw(st.integers(1, 8)))]
    order = data.draw(st.permutations(names))
    config = shipped.folder("configs") / "ce_digits.yaml"
    rows = {}
    for n, name in enumerate(order):
        earlier = data.draw(st.lists(st.sampled_from(order[:n]), unique=True)) if n else []
        refs = {f"start{k}": f"{{{other}}}" for k, other in enumerate(earlier)}
        rows[name] = suite.Row(name, "", {name: suite.Stage(config, {"id": name, **refs})})
    rows = {name: rows[name] for name in names}
    plan = suite.plan(suite.Suite("x", [0, 1], rows))
    seen = set()
    for key, job in plan.jobs.items():
        assert set(job.needs) <= seen
        seen.add(key)
    assert len(plan.jobs) == 2 * len(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: [", "mine.yaml"),
        ("- a", "mine.yaml"),
        ("seeds: [0]", "no rows"),
        ("seeds: 3\nrows: {a: {config: ce_digits}}", "mine.yaml: seeds"),
        ("rows: {a: {config: ce_digit}}", "Did you mean 'ce_digits'"),
        ("rows: {a: {config: nowhere.yaml}}", "'nowhere.yaml'"),
        ("rows: {a: {confg: ce_digits}}", "Did you mean 'config'"),
        ("rows: {a: {}}", "row 'a'"),
        ("rows: {a: {stages: {b: {}}}}", "stage 'b'"),
        ("rows: {a: {config: ce_digits, overrides: [x]}}", "row 'a', overrides"),
        ("rows: {a: {config: ce_digits}, a: {config: vs_digits}}", "'a'"),
        ("rows: {a/b: {config: ce_digits}}", "row 'a/b'"),
        ("rows: {a: {stages: {b/c: {config: ce_digits}}}}", "stage 'b/c'"),
        ("rows: {abc: {config: ce_digits, overrides: {x: '{abd}'}}}", "Did you mean 'abc'"),
    ],
)
def test_a_mistake_in_a_suite_is_named(content, message, tmp_path, refused):
    (tmp_path / "mine.yaml").write_text(content)
    assert message in refused("bench", "run", "mine.yaml")


def test_a_circle_of_stages_is_named(planned):
    rows = {"a": {"overrides": {"x": "{b}"}}, "b": {"overrides": {"x": "{a}"}}}
    with pytest.raises(UserError, match=r"a\.a -> b\.b|b\.b -> a\.a"):
        planned(rows)


def test_an_unknown_suite_is_refused_with_the_nearest(refused):
    assert "Did you mean 'smoke'" in refused("bench", "run", "smok")
    assert "nowhere.yaml" in refused("bench", "run", "nowhere.yaml")


@pytest.mark.parametrize("name", catalog.suites())
def test_a_shipped_suite_can_be_planned(name):
    content = suite.read(suite.find(name))
    plan = suite.plan(content)
    assert plan.suite == name
    assert json.loads(json.dumps(dict(plan.rows)))
    for job in plan.jobs.values():
        assert set(job.needs) <= plan.jobs.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.suites())
def test_the_overrides_of_a_shipped_suite_are_arguments_that_there_are(name, ltbench, tmp_path):
    jobs = suite.plan(suite.read(suite.find(name)), [0]).jobs
    runs = {key: tmp_path / key for key in jobs}
    for job in jobs.values():
        words = command(job, tmp_path, runs)[3:]
        done = ltbench(*words, "--print_config", cwd=Path(__file__).parents[2])
        assert done.code == 0, f"{job.name}: {done.err}"


def test_a_baseline_is_another_row(workshop):
    rows = {"ce": {"config": 1}, "vs": {"config": 2, "baseline": "ce"}}
    plan = suite.plan(suite.read(workshop(rows)))
    assert plan.baselines == {"vs": "ce"}
    for wrong in ("cee", "vs"):
        rows["vs"]["baseline"] = wrong
        with pytest.raises(UserError, match=f"'vs'.*'{wrong}'"):
            suite.read(workshop(rows))


def test_the_baseline_of_a_row_that_is_exported_again_is_that_of_its_new_plan(workshop):
    rows = {"ce": {"config": 1}, "ls": {"config": 2}, "vs": {"config": 3, "baseline": "ce"}}
    old = suite.plan(suite.read(workshop(rows)))
    rows["vs"]["baseline"], rows["ls"]["baseline"] = "ls", "ce"
    new = suite.plan(suite.read(workshop(rows)), rows=["vs"])
    assert new.after(old).baselines == {"vs": "ls"}

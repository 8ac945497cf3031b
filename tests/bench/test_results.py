"""Runs are read from disk one by one; what is damaged or foreign is named and left out."""

import json

import numpy as np
import pytest
from support import change_record

from ltbench.bench.score import leaderboard, results
from ltbench.bench.show import report
from ltbench.errors import UserError


def test_runs_that_differ_in_the_seed_alone_are_a_row(make_run, tmp_path):
    for seed in (2, 0, 1):
        make_run("ce", seed)
    make_run("vs", 0)
    collected = results.of_folder(tmp_path / "runs")
    assert {row.name: [run.record["seed"] for run in row.runs] for row in collected.rows} == {
        **{"ce": [0, 1, 2], "vs": [0]}
    }
    assert collected.problems == []


def test_runs_of_one_name_and_two_recipes_are_two_rows(make_run, tmp_path):
    make_run("ce", 0)
    change_record(make_run("ce", 1), config__trainer__max_epochs=99)
    names = [row.name for row in results.of_folder(tmp_path / "runs").rows]
    assert len(set(names)) == 2
    assert all(name.startswith("ce #") for name in names)


def test_a_record_of_before_its_recipe_was_mended_is_a_row_of_its_own(make_run, tmp_path):
    """Also that of a run which started from one of before."""
    old, new = make_run("paco", 0), make_run("paco", 1)
    change_record(old, config__model__class_path="PaCo")
    change_record(new, config__model__class_path="PaCo", revisions={"PaCo": 2})
    for seed, revised in ((0, {}), (1, {"revisions": {"PaCo": 2}})):
        start = {"role": "teacher", "path": f"runs/paco-{seed}/checkpoints/last.ckpt", **revised}
        change_record(make_run("student", seed), lineage=[start])
    rows = results.of_folder(tmp_path / "runs").rows
    assert [len(row.runs) for row in rows] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"config__data__init_args__eval_batch_size": 64},
        {"config__data__init_args__predict_folder": "new"},
        {"config__trainer__profiler": 1},
    ],
)
def test_what_does_not_count_does_not_split_a_row(change, make_run, tmp_path):
    """As for the job id."""
    make_run("ce", 0)
    change_record(make_run("ce", 1), **change)
    (row,) = results.of_folder(tmp_path / "runs").rows
    assert len(row.runs) == 2


def test_runs_from_before_classes_had_short_names_are_in_one_row_with_those_after(
    make_run, tmp_path
):
    make_run("ce", 0)
    change_record(make_run("ce", 1), config__model__class_path="ltbench.methods.erm.ERM")
    (row,) = results.of_folder(tmp_path / "runs").rows
    assert len(row.runs) == 2


def test_runs_that_start_from_other_seeds_of_a_stage_are_a_row(make_run, tmp_path):
    for seed in (0, 1):
        teacher = f"runs/teacher-{seed}"
        change_record(
            make_run("student", seed),
            config__model__init_args__teacher={"path": teacher},
            lineage=[{"role": "teacher", "path": f"{teacher}/checkpoints/last.ckpt"}],
        )
    (row,) = results.of_folder(tmp_path / "runs").rows
    assert len(row.runs) == 2


def test_a_seed_that_is_there_twice_counts_once_and_is_named(make_run, tmp_path):
    make_run("ce", 0)
    make_run("ce", 0, folder=tmp_path / "runs/again")
    collected = results.of_folder(tmp_path / "runs")
    assert len(collected.rows[0].runs) == 1
    assert "seed 0 of ce" in collected.problems[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text, record: text[: len(text) // 2], "bad-0/record.json"),
        (lambda text, record: "[]", "bad-0/record.json"),
        (lambda text, record: json.dumps(record | {"schema": 99}), "schema 99"),
        (lambda text, record: json.dumps({"schema": 1, "loss": 3}), "'name'"),
        (lambda text, record: json.dumps({"schema": 1, "status": "done"}), "'name'"),
        (lambda text, record: json.dumps(record | {"data": {}}), "'data.source'"),
        (lambda text, record: json.dumps(record | {"metrics": {}}), "metrics"),
        (
            lambda text, record: json.dumps(record | {"status": "running"}),
            "running",
        ),
        (lambda text, record: json.dumps(record | {"metrics": {"last": {}}}), "no metrics"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_the_rest_is_read(
    damage, message, make_run, tmp_path
):
    make_run("good", 0)
    path = make_run("bad", 0) / "record.json"
    text = path.read_text()
    path.write_text(damage(text, json.loads(text)))
    collected = results.of_folder(tmp_path / "runs")
    assert [row.name for row in collected.rows] == ["good"]
    (problem,) = collected.problems
    assert message in problem
    assert "bad-0" in problem


def test_any_part_of_a_record_that_is_something_else_is_named_or_does_no_harm(make_run, tmp_path):
    """Whatever stands in the place of whatever, the other runs get their table and report."""
    make_run("good", 0)
    folder = make_run("bad", 0)
    path = folder / "record.json"
    text = path.read_text()
    metrics = ("accuracy", "per_class_recall")
    places = [*places_of(json.loads(text)), *(("metrics", "last", "test", m) for m in metrics)]
    for place in places:
        for value in ("<b>", -1, [None], float("nan"), None):
            record = json.loads(text)
            part = record
            for name in place[:-1]:
                part = part[name]
            part[place[-1]] = value
            path.write_text(json.dumps(record))
            collected = results.of_folder(tmp_path / "runs")
            assert "good" in [row.name for row in collected.rows]
            if len(collected.rows) == 2:
                report.html(leaderboard.build(collected), [])
            else:
                assert "bad-0" in collected.problems[0]


def places_of(value, place=()):
    """Paths to all parts of a record but those of its metrics."""
    for name, item in value.items() if isinstance(value, dict) else ():
        if name != "metrics" or place:
            yield (*place, name)
            yield from places_of(item, (*place, name))


def test_what_a_row_goes_back_to_is_found(make_run, tmp_path):
    def start(name, role):
        return {"lineage": [{"role": role, "job_id": f"{name}-0", "path": "x"}]}

    make_run("first", 0)
    make_run("second", 0, **start("first", "init_from"))
    make_run("third", 0, **start("second", "teacher"))
    rows = {row.name: row for row in results.of_folder(tmp_path / "runs").rows}
    assert [run.record["name"] for run in rows["third"].earlier] == ["second", "first"]
    assert rows["first"].earlier == []


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"record\.json"):
        results.of_folder(tmp_path)


def rewrite(path, **changes):
    with np.load(path) as stored:
        arrays = dict(stored) | changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.zeros(3, int), "prediction": np.zeros(3, int)}, "120 images"),
        ({"prediction": np.zeros(120, int)}, "accuracy"),
        ({"label": np.full(120, 3)}, "3 classes"),
        ({"prediction": None}, "'prediction'"),
    ],
)
def test_predictions_that_do_not_fit_their_record_are_named(changes, message, make_run):
    folder = make_run("ce", 0)
    rewrite(folder / "predictions_last.npz", **changes)
    with pytest.raises(UserError, match=message):
        results.read(folder).predictions()


def test_predictions_are_not_executed(make_run):
    folder = make_run("ce", 0)
    rewrite(folder / "predictions_last.npz", label=np.array([print] * 120, dtype=object))
    with pytest.raises(UserError, match=r"predictions_last\.npz"):
        results.read(folder).predictions()


def test_a_cut_off_predictions_file_is_named_and_a_missing_one_is_not(make_run):
    folder = make_run("ce", 0)
    path = folder / "predictions_last.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"predictions_last\.npz"):
        results.read(folder).predictions()
    path.unlink()
    assert results.read(folder).predictions() is None


def test_best_falls_back_to_last_where_a_run_has_no_validation(make_run):
    assert results.read(make_run("ce", 0), "best").selection == "last"

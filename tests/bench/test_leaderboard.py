"""Tables computed from records: what is ranked, what is said, in every format."""

import csv
import io
import json

import numpy as np
import pytest
from support import change_record

from ltbench.bench.score import comparable, leaderboard, results
from ltbench.bench.show import tables, terminal


def board_of(tmp_path, **options):
    return leaderboard.build(results.of_folder(tmp_path / "runs"), **options)


def test_means_and_intervals_are_those_of_the_records(make_run, tmp_path):
    folders = [make_run("ce", seed) for seed in range(3)]
    (table,) = board_of(tmp_path).tables
    (line,) = table.lines
    records = [json.loads((f / "record.json").read_text()) for f in folders]
    for name, estimate in line.estimates.items():
        values = [record["metrics"]["last"]["test"][name] for record in records]
        assert estimate.mean == pytest.approx(np.mean(values))
        assert estimate.seeds[0] <= estimate.mean <= estimate.seeds[1]
    for name in ("accuracy", "hmean_recall", "min_recall"):
        low, high = line.estimates[name].images
        assert low < high


def test_rows_are_ranked_and_what_cannot_be_told_apart_shares_a_rank(make_run, tmp_path):
    recalls = {"poor": (0.5, 0.4, 0.1), "good": (0.9, 0.85, 0.8), "as_good": (0.9, 0.84, 0.81)}
    for name, chances in recalls.items():
        for seed in range(4):
            make_run(name, seed, chances)
    (table,) = board_of(tmp_path).tables
    assert {line.name: line.rank for line in table.lines} == {"good": 1, "as_good": 1, "poor": 3}
    assert table.lines[-1].name == "poor"
    by = board_of(tmp_path, by="min_recall").tables[0]
    assert by.by == "min_recall"
    assert by.lines[-1].name == "poor"


def test_an_unknown_metric_is_refused_with_the_nearest(make_run, tmp_path, refused):
    make_run()
    files = sorted(tmp_path.rglob("*"))
    assert "Did you mean 'min_recall'" in refused("leaderboard", "runs", "--by", "min_recal")
    assert sorted(tmp_path.rglob("*")) == files


def test_runs_on_other_images_are_in_a_table_of_their_own(make_run, tmp_path):
    make_run("ce", 0)
    change_record(make_run("vs", 0), data__source="Letters")
    board = board_of(tmp_path)
    assert [len(table.lines) for table in board.tables] == [1, 1]


def test_generated_images_are_ranked_by_fid_the_lower_the_better(make_run, tmp_path):
    for name, base in (("gan", 30), ("cbgan", 20)):
        for seed in range(3):
            test = {"fid": base + seed, "kl_to_uniform": 0.1 * seed, "min_class_share": 0.05}
            change_record(make_run(name, seed), metrics={"last": {"test": test}})
    (table,) = board_of(tmp_path).tables
    assert table.by == "fid"
    assert [(line.name, line.rank) for line in table.lines] == [("cbgan", 1), ("gan", 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__index_hash": "a" * 64}, "training images: 195 (aaaaaaaa)"),
        ({"config__model__init_args__backbone": "resnet50"}, "backbone: resnet50"),
        ({"images_seen": 2_500_000}, "images seen: 2.5M"),
        ({"config__data__init_args__image_size": 224}, "input size: 224"),
        (
            {"config__data__init_args__augment": [{"class_path": "a.Flip", "init_args": {"p": 1}}]},
            "augmentation: Flip(p=1)",
        ),
        ({"config__model__init_args__mixup": 0.8}, "augmentation: mixup 0.8"),
        (
            {"config__model__init_args__backbone_args": {"pretrained": True}},
            "pre-training: timm's weights",
        ),
        (
            {"lineage": [{"role": "teacher", "job_id": "x"}]},
            "pre-training: teacher is a run that is not here",
        ),
        ({"weights": "averaged"}, "weights: averaged"),
        ({"data__unlabelled_counts": [10, 20, 30]}, "unlabelled images: 60"),
    ],
)
def test_a_row_that_is_not_comparable_says_in_what(changes, message, make_run, tmp_path):
    for name in ("a", "b"):
        make_run(name, 0)
    change_record(make_run("odd", 0), **changes)
    (table,) = board_of(tmp_path).tables
    differs = {line.name: line.differs for line in table.lines}
    assert differs == {"a": [], "b": [], "odd": [message]}
    for text in (tables.markdown(board_of(tmp_path), []), tables.as_json(board_of(tmp_path), [])):
        assert message.partition(":")[0] in text


def test_the_selection_rule_is_a_difference(make_run):
    row = results.Row("ce", "", [results.read(make_run("ce", 0))])
    assert comparable.facts(row)["selected"] == "last epoch"


def test_a_row_that_goes_on_from_another_has_its_network_and_its_cost(make_run, tmp_path):
    start = make_run("start", 0)
    lineage = [{"role": "init_from", "job_id": "start-0", "path": "x"}]
    change_record(make_run("tuned", 0, lineage=lineage), config__model__init_args__backbone=None)
    change_record(start, config__model__init_args__backbone="wrn_28_2", wall_seconds=100.0)
    (table,) = board_of(tmp_path).tables
    tuned = next(line for line in table.lines if line.name == "tuned")
    assert tuned.facts["backbone"] == "wrn_28_2"
    assert tuned.facts["pre-training"] == "init_from is start"
    assert tables.costs(tuned)["wall time"] == "0:00:10"
    assert tables.costs(tuned)["with stages"] == "0:01:50"


def test_the_groups_of_a_row_are_those_of_its_own_training_images(make_run, tmp_path):
    make_run("one", 0)
    folder = make_run("other", 0)  # of which the first class is the rare one
    recalls = json.loads((folder / "record.json").read_text())["metrics"]["last"]["test"]
    change_record(
        folder,
        data__class_counts=[15, 60, 120],
        metrics__last__test__many_recall=recalls["per_class_recall"][2],
    )
    (table,) = board_of(tmp_path).tables
    for line in table.lines:
        low, high = line.estimates["many_recall"].images
        assert low < line.estimates["many_recall"].mean < high


def test_rows_measured_on_other_images_are_not_paired(make_run, tmp_path):
    make_run("one", 0)
    path = make_run("other", 0) / "predictions_last.npz"
    with np.load(path) as stored:
        np.savez_compressed(path.with_suffix(".new.npz"), **dict(stored, index=stored["index"] + 7))
    path.with_suffix(".new.npz").replace(path)
    board = board_of(tmp_path)
    (problem,) = board.problems
    assert problem.startswith("other: ")
    assert np.isnan(board.tables[0].p[0, 1])
    assert {line.rank for line in board.tables[0].lines} == {1}


def test_small_test_classes_are_warned_of(make_run, tmp_path):
    folder = make_run("ce", 0)
    keep = np.r_[0:40, 40:80, 80:83]
    with np.load(folder / "predictions_last.npz") as stored:
        arrays = {name: stored[name][keep] for name in stored}
    np.savez(folder / "predictions_last.npz", **arrays)
    right = (arrays["prediction"] == arrays["label"]).mean()
    change_record(folder, data__images__test=len(keep), metrics__last__test__accuracy=float(right))
    (table,) = board_of(tmp_path).tables
    assert "1 of 3 classes have fewer than 30 test images, the smallest 3" in table.notes[0]


def test_an_interval_without_width_is_explained(make_run, tmp_path):
    make_run("ce", 0, (0.9, 0.5, 0.0))
    (table,) = board_of(tmp_path).tables
    assert table.lines[0].estimates["min_recall"].images == (0, 0)
    assert "±0.0 over test images is too narrow" in table.notes[0]


def test_one_seed_and_missing_predictions_are_said(make_run, tmp_path):
    make_run("whole", 0)
    (make_run("bare", 0) / "predictions_last.npz").unlink()
    (table,) = board_of(tmp_path).tables
    notes = {line.name: " ".join(line.notes) for line in table.lines}
    assert "One seed" in notes["whole"]
    assert "No stored predictions" in notes["bare"]
    assert {line.rank for line in table.lines} == {1}  # nothing is known of their difference


def test_predictions_of_another_run_are_named_and_their_row_stays(make_run, tmp_path):
    good, bad = make_run("good", 0), make_run("bad", 0, (0.2, 0.2, 0.2))
    (bad / "predictions_last.npz").write_bytes((good / "predictions_last.npz").read_bytes())
    board = board_of(tmp_path)
    assert len(board.tables[0].lines) == 2
    (problem,) = board.problems
    assert "predictions_last.npz" in problem


def test_every_format_has_every_row(make_run, tmp_path, ltbench):
    for name in ("ce", "vs"):
        for seed in range(2):
            make_run(name, seed)
    texts = {
        form: ltbench("leaderboard", "runs", "--format", form).out
        for form in ("rich", "md", "csv", "json", "html")
    }
    for text in texts.values():
        assert "ce" in text
        assert "vs" in text
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert {(row["row"], row["metric"]) for row in rows} >= {
        ("ce", "accuracy"),
        ("vs", "min_recall"),
    }
    content = json.loads(texts["json"])
    by_name = {line["row"]: line for line in content["tables"][0]["lines"]}
    mean = by_name["ce"]["estimates"]["accuracy"]["mean"]
    assert [float(r["mean"]) for r in rows if (r["row"], r["metric"]) == ("ce", "accuracy")] == [
        mean
    ]
    assert f"| {100 * mean:.1f} ±" in texts["md"]
    assert f"{100 * mean:.1f} ±" in texts["rich"]
    assert len(by_name["ce"]["runs"]) == 2


def test_the_output_file_says_the_format(make_run, tmp_path, ltbench, refused):
    make_run()
    assert ltbench("leaderboard", "runs", "--output", "table.json").code == 0
    assert json.loads((tmp_path / "table.json").read_text())["title"] == "runs"
    assert ".txt, .md, .csv, .json, .html" in refused(
        "leaderboard", "runs", "--output", "table.pdf"
    )
    assert ltbench("leaderboard", "runs", "--output", "table.txt").code == 0
    assert "accuracy" in (tmp_path / "table.txt").read_text()


def test_names_are_not_markup_nor_cells(make_run, tmp_path):
    make_run("a|b [bold]c_d*", 0, folder=tmp_path / "runs/odd")
    board = board_of(tmp_path)
    assert "a\\|b \\[bold\\]c\\_d\\*" in tables.markdown(board, [])
    from rich.console import Console

    console = Console(record=True, width=200, file=io.StringIO())
    console.print(terminal.render(board, [], 200))
    assert "a|b [bold]c_d*" in console.export_text()

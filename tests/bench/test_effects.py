"""What a row adds to its baseline: ours with an interval, the papers' beside it, in all formats."""

import io
import json
import re

import numpy as np
import pytest
import scipy.stats
import yaml
from rich.console import Console

from ltbench.bench.score import claims, effects, leaderboard, results, stats
from ltbench.bench.show import report, tables, terminal

CLAIMED = [
    {
        "paper": "1234.56789",
        "dataset": "digits",
        "table": "table 1",
        "protocol": "4 epochs",
        "certainty": "verified",
        "needs": {"config.trainer.max_epochs": 200},  # not comparable as numbers
        "rows": {
            "ce": {"accuracy": 70, "mean_recall": 70, "tail_recall": 40},
            "vs": {"mean_recall": 78},
        },
    }
]
CLAIMED += [
    CLAIMED[0] | {"certainty": "unverified", "rows": {"vs": {"accuracy": 75, "tail_recall": 50}}},
    CLAIMED[0] | {"table": "table 2", "rows": {"vs": {"accuracy": 90}}},  # without the baseline
]


def board_of(tmp_path, **baselines):
    collected = results.of_folder(tmp_path / "runs")
    for row in collected.rows:
        row.baseline = baselines.get(row.name, "")
    return leaderboard.build(collected)


@pytest.fixture
def board(make_run, tmp_path):
    """Rows ``vs`` over ``ce``, and ``lost``, whose baseline was not run."""
    make_run("ce", 0, (0.9, 0.6, 0.3))
    make_run("vs", 0, (0.9, 0.8, 0.7))
    make_run("lost", 0)
    return board_of(tmp_path, vs="ce", lost="nowhere")


@pytest.fixture
def judged(board, tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(CLAIMED))
    return claims.judge(claims.read(path), board)


def test_a_gain_is_the_difference_and_its_interval_is_that_of_mcnemars_counts(board):
    (table,) = board.tables
    (effect,) = effects.effects(table, [])
    assert (effect.row, effect.baseline) == ("vs", "ce")
    rows = {line.name: line.row.runs[0] for line in table.lines}
    gain = effect.gains["accuracy"]
    assert gain.mean == pytest.approx(
        rows["vs"].metrics["accuracy"] - rows["ce"].metrics["accuracy"]
    )
    mine, other = (rows[name].predictions() for name in ("vs", "ce"))
    apart = mine.correct.astype(float) - other.correct  # +1, 0 or -1 an image
    squared = np.mean([apart[mine.label == c].var() / 40 for c in range(3)]) / 3
    half = 1.96 * squared**0.5
    assert gain.interval == pytest.approx((gain.mean - half, gain.mean + half), abs=0.1 * half)


def test_over_seeds_without_predictions_it_is_welchs_interval():
    mine, other = [0.62, 0.65, 0.61], [0.55, 0.53, 0.56, 0.58]
    mean, interval = stats.difference((mine, other), (None, None))
    wanted = scipy.stats.ttest_ind(mine, other, equal_var=False).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(mine) - np.mean(other))
    assert interval == pytest.approx(tuple(wanted))


def test_one_seed_without_predictions_has_no_interval():
    assert stats.difference(([2.5], [1.5]), (None, None)) == (1.0, None)


def test_papers_that_report_both_rows_in_one_table_stand_beside(board, judged):
    (effect,) = effects.effects(board.tables[0], judged)
    # Classes of equal size: mean recall is accuracy. Another table has no baseline.
    assert sorted(effect.gains["accuracy"].claimed) == pytest.approx([0.05, 0.08])
    assert effect.gains["tail_recall"].claimed == pytest.approx([0.10])
    assert effect.gains["tail_recall"].sources == ["1234.56789, table 1 (unverified)"]
    assert effect.gains["min_recall"].claimed == []
    cell = tables.effect_cell("accuracy", effect.gains["accuracy"])
    assert re.fullmatch(r"\+\d+\.\d ±\d+\.\d \[\+5\.0 to \+8\.0\]", cell)


def test_every_format_shows_it_and_says_what_is_missing(board, judged):
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(terminal.render(board, judged, 200))
    texts = {
        "rich": console.export_text(),
        "md": tables.markdown(board, judged).replace("\\", ""),
        "html": report.html(board, judged),
    }
    for text in texts.values():
        assert "[+10.0]" in text
        assert "What lost adds is unknown: its baseline nowhere is not in this table." in text
    content = json.loads(tables.as_json(board, judged))
    (effect,) = content["tables"][0]["effects"]
    assert effect["gains"]["tail_recall"]["claimed"] == pytest.approx([0.10])


def test_a_narrow_terminal_shows_what_fits(board, judged):
    console = Console(record=True, width=60, file=io.StringIO())
    console.print(terminal.render(board, judged, 60))
    shown = console.export_text().partition("what a method adds")[2].splitlines()[1]
    assert "accuracy" in shown
    assert "min recall" not in shown


def test_of_numbers_that_should_fall_a_fall_is_good(make_run, tmp_path):
    generated = {"fid[pixels:1]": 3.0, "kl_to_uniform": 0.2, "min_class_share": 0.01}
    for name, factor in (("gan", 1), ("cbgan", 0.5)):
        folder = make_run(name)
        record = json.loads((folder / "record.json").read_text())
        record["metrics"]["last"] = {"test": {k: factor * v for k, v in generated.items()}}
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "predictions_last.npz").unlink()
    (table,) = board_of(tmp_path, cbgan="gan").tables
    (effect,) = effects.effects(table, [])
    assert tables.effect_cells([effect]) == [["cbgan", "gan", "-1.5", "-0.1", "-0.5"]]

"""A metric is one entry of the catalogue: everything that shows metrics reads it there."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from ltbench.bench.score import leaderboard, results
from ltbench.bench.show import report, tables, terminal
from ltbench.errors import UserError
from ltbench.metrics import LongTailMetrics
from ltbench.metrics.catalogue import GROUPS, METRICS, TABLES, Metric, metric, shown_in
from ltbench.runs.result_table import result_table


def text_of(shown):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_every_metric_says_where_it_belongs():
    for entry in METRICS.values():
        assert entry.group in GROUPS
        assert set(entry.tables.split()) <= set(TABLES)


def test_a_new_metric_is_one_entry(make_run, tmp_path, monkeypatch):
    entry = Metric(
        *("max recall", "worst", "run board", lambda tally: tally.seen.max(-1)),
        resampled=True,
        long="recall of the best class",
    )
    monkeypatch.setitem(METRICS, "max_recall", entry)
    counted = LongTailMetrics(3)
    counted.update(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]))
    assert float(counted.compute()["max_recall"]) == 1

    folder = make_run("ce", 0)
    record = json.loads((folder / "record.json").read_text())
    value = max(record["metrics"]["last"]["test"]["per_class_recall"])
    assert record["metrics"]["last"]["test"]["max_recall"] == value
    assert "recall of the best class" in text_of(result_table(record))
    make_run("vs", 0)
    board = leaderboard.build(results.of_folder(tmp_path / "runs"), by="max_recall")
    low, high = board.tables[0].lines[0].estimates["max_recall"].images
    assert low < high
    assert f"{100 * value:.1f}" in tables.markdown(board, [])
    for text in (
        tables.markdown(board, []),
        report.html(board, []),
        text_of(terminal.render(board, [], 300)),
    ):
        assert "max recall" in text
    assert "max_recall" in tables.as_csv(board)


def test_fractions_are_shown_in_percent_and_numbers_are_not():
    assert (metric("accuracy").text(0.5), metric("accuracy").signed(0.5)) == ("50.0", "+50.0")
    assert (metric("fid").text(12.345), metric("fid").signed(-1)) == ("12.3", "-1")
    assert metric("accuracy").text(np.nan) == "-"
    assert metric("fid[tiny]").title == "FID [tiny]"
    with pytest.raises(UserError, match="min_recall"):
        metric("min_recal")


def test_tables_show_what_is_theirs_by_group():
    names = ["tail_recall", "unknown", "fid[a]", "accuracy", "ece", "min_recall", "head_recall"]
    expected = ["accuracy", "head_recall", "tail_recall", "min_recall", "fid[a]"]
    assert shown_in("effects", names) == expected

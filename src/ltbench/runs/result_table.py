"""The table printed at the end of a run, from its record."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ltbench.metrics.catalogue import Metric, metric, shown_in
from ltbench.records.schema import SELECTIONS

Column = tuple[str, dict[str, Any]]


def result_table(record: dict[str, Any]) -> Group:
    """Show a record's metrics in percent, with one column per selection (last, best on val).

    They are those of the test set, or of the validation set if there is no test set. Each head of
    a model has a column of its own; there is then one table per selection.
    """
    selections = record["metrics"]
    split = "test" if any("test" in splits for splits in selections.values()) else "val"
    images = {"test": "test set", "val": "validation set"}[split]
    title = f"{record['name']}: {images} of {record['data']['source']}, %"
    tables: list[list[Column]] = []
    for selection, splits in selections.items():
        metrics, name = splits.get(split, {}), SELECTIONS[selection]
        heads = [(f"{name}, {head}", _of_head(metrics, head)) for head in _heads(metrics)]
        tables.append([(name, _of_head(metrics, "")), *heads])
    if all(len(columns) == 1 for columns in tables):
        tables = [[column for (column,) in tables]]
    names = record["data"]["class_names"]
    return Group(*(_table(title, columns, names) for columns in tables))


def _table(title: str, columns: Sequence[Column], class_names: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for heading, _ in columns:
        table.add_column(escape(heading), justify="right")
    measured = {name for _, metrics in columns for name in metrics}
    if not measured:
        table.add_row("nothing was measured: there are no test or validation images")
    rows = [(name, metric(name)) for name in shown_in("run", measured)]
    for name, row in sorted(rows, key=lambda named: not named[1].percent):
        label, unit = row.long or row.title, f", {row.unit}" if row.unit else ""
        label = label if row.percent else f"{label}{unit} (not %)"
        table.add_row(escape(label), *(_cell(row, metrics.get(name)) for _, metrics in columns))
    if "per_class_recall" in measured:
        worst = (_worst_class(metrics, class_names) for _, metrics in columns)
        table.add_row("class with the min recall", *worst)
    return table


def _heads(metrics: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name))


def _of_head(metrics: dict[str, Any], head: str) -> dict[str, Any]:
    if not head:
        return {name: value for name, value in metrics.items() if "/" not in name}
    prefix = f"{head}/"
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def _worst_class(metrics: dict[str, Any], names: Sequence[str]) -> str:
    recalls = np.array(metrics.get("per_class_recall", []), dtype=float)
    return escape(names[int(np.nanargmin(recalls))]) if np.isfinite(recalls).any() else "-"


def _cell(row: Metric, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return row.text(value) if row.percent else f"{value:.3f}"

"""The table printed at the end of a run, from its record."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from ltbench.metrics.catalogue import Metric, metric, shown_in
from ltbench.records.schema import SELECTIONS


def result_table(record: dict[str, Any]) -> Table:
    """Show a record's metrics in percent, with one column per selection (last, best on val).

    They are those of the test set, or of the validation set if there is no test set. Each head of
    a model has a column of its own.
    """
    selections = record["metrics"]
    split = "test" if any("test" in splits for splits in selections.values()) else "val"
    images = {"test": "test set", "val": "validation set"}[split]
    table = Table(title=f"{record['name']}: {images} of {record['data']['source']}, %")
    table.add_column("")
    columns: list[dict[str, Any]] = []
    for selection, splits in selections.items():
        metrics = splits.get(split, {})
        for head in ["", *_heads(metrics)]:
            title = SELECTIONS[selection] + (f", {head}" if head else "")
            table.add_column(escape(title), justify="right")
            columns.append(_of_head(metrics, head))
    measured = {name for metrics in columns for name in metrics}
    if not measured:
        table.add_row("nothing was measured: there are no test or validation images")
    rows = [(name, metric(name)) for name in shown_in("run", measured)]
    for name, row in sorted(rows, key=lambda named: not named[1].percent):
        title, unit = row.long or row.title, f", {row.unit}" if row.unit else ""
        title = title if row.percent else f"{title}{unit} (not %)"
        table.add_row(escape(title), *(_cell(row, metrics.get(name)) for metrics in columns))
    names = record["data"]["class_names"]
    if "per_class_recall" in measured:
        table.add_row("class with the min recall", *(_worst_class(m, names) for m in columns))
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

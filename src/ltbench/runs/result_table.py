"""The table that a run ends with, from its record."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

FRACTIONS = {
    "accuracy": "accuracy",
    "many_recall": "many-shot recall (> 100 training images)",
    "medium_recall": "medium-shot recall (20 to 100)",
    "few_recall": "few-shot recall (< 20)",
    "head_recall": "head recall (by index)",
    "mid_recall": "mid recall",
    "tail_recall": "tail recall",
    "hmean_recall": "H-mean recall",
    "gmean_recall": "G-mean recall",
    "min_recall": "min recall",
    "min_ht_recall": "min head/tail recall (90 / 10 % of classes)",
    "min_coverage": "min coverage (share of predictions)",
    "min_class_share": "share of the rarest generated class",
}
NUMBERS = {"kl_to_uniform": "KL to uniform, nats (not %)"}
SELECTIONS = {"last": "last epoch", "best": "best on val", "given": "given checkpoint"}


def result_table(record: dict[str, Any]) -> Table:
    """Lay out a record's metrics in percent: a column a selection (last epoch, best on val).

    They are those of the test set; of the validation set where the data has no test set. A model
    with several heads has a column for each. A run on data with neither has no metrics.
    """
    selections = record["metrics"]
    split = "test" if any("test" in found for found in selections.values()) else "val"
    images = {"test": "test set", "val": "validation set"}[split]
    table = Table(title=f"{record['name']}: {images} of {record['data']['source']}, %")
    table.add_column("")
    columns: list[dict[str, Any]] = []
    for selection, found in selections.items():
        metrics = found.get(split, {})
        for head in ["", *_heads(metrics)]:
            title = SELECTIONS[selection] + (f", {head}" if head else "")
            table.add_column(escape(title), justify="right")
            columns.append(_of_head(metrics, head))
    measured = {name for metrics in columns for name in metrics}
    if not measured:
        table.add_row("nothing was measured: there are no test or validation images")
    for name, title in FRACTIONS.items():
        if name in measured:
            table.add_row(title, *(percent(metrics.get(name)) for metrics in columns))
    for name in sorted(measured):
        if name in NUMBERS or name.startswith("fid"):
            cells = (_number(metrics.get(name)) for metrics in columns)
            table.add_row(NUMBERS.get(name, escape(f"FID{name[3:]} (not %)")), *cells)
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


def percent(value: float | None) -> str:
    """Write a fraction as percent with one decimal; undefined ones as a dash."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"

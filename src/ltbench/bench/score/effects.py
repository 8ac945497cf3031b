"""What a row adds to its baseline, the row that a suite compares it with.

Measured on other images than a paper's, or at another length, two rows cannot be compared with the
paper's; the difference between them can, with an interval.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ltbench.bench.score import stats
from ltbench.bench.score.claims import Claim, Judged
from ltbench.bench.score.leaderboard import Line, Table
from ltbench.bench.score.stats import Interval
from ltbench.metrics.catalogue import shown_in


@dataclass(frozen=True)
class Gain:
    """What a row adds to one metric.

    Args:
        mean: Its mean over seeds less the baseline's, in the unit of the metric.
        interval: 95 %, over test images and, where there are several, seeds; None if unknown.
        claimed: The same difference in papers that report both rows in one table.
        sources: Where they stand.
    """

    mean: float
    interval: Interval | None
    claimed: Sequence[float] = ()
    sources: Sequence[str] = ()


@dataclass(frozen=True)
class Effect:
    """What a row adds to its baseline, metric by metric."""

    row: str
    baseline: str
    gains: Mapping[str, Gain]


def effects(table: Table, judged: Sequence[Judged]) -> list[Effect]:
    """Compute what each row with a baseline in the same table adds to it; order of the table.

    Args:
        table: The rows.
        judged: The claims about them.
    """
    lines = {line.name: line for line in table.lines}
    return [
        Effect(line.name, over.name, dict(_gains(line, over, table, judged)))
        for line in table.lines
        if (over := lines.get(line.row.baseline))
    ]


def missing(table: Table) -> list[str]:
    """Say which rows have a baseline that is not in the table."""
    names = {line.name for line in table.lines}
    return [
        f"What {line.name} adds is not known: there is no {line.row.baseline} in this table."
        for line in table.lines
        if line.row.baseline and line.row.baseline not in names
    ]


def _gains(
    line: Line, over: Line, table: Table, judged: Sequence[Judged]
) -> Iterator[tuple[str, Gain]]:
    shared = [n for n in table.metrics if n in line.estimates and n in over.estimates]
    for name in shown_in("effects", shared):
        mean, interval = stats.difference(
            (line.estimates[name].values, over.estimates[name].values),
            (line.draws.get(name), over.draws.get(name)),
        )
        claimed = list(_claimed(line, over, name, judged))
        yield (
            name,
            Gain(
                mean,
                interval,
                [mine.value - other.value for mine, other in claimed],
                [mine.source for mine, _ in claimed],
            ),
        )


def _claimed(
    line: Line, over: Line, name: str, judged: Sequence[Judged]
) -> Iterator[tuple[Claim, Claim]]:
    """Yield what papers report of both rows in one table; of one paper's, the more certain."""
    names = {name}
    if name == "accuracy" and _is_balanced(line) and _is_balanced(over):
        names.add("mean_recall")  # which is the same number then
    tables: dict[tuple[str, str, str], tuple[dict[str, Claim], dict[str, Claim]]] = {}
    for each in judged:
        claim = each.claim
        if claim.metric in names and each.line in (line.name, over.name):
            place = (claim.paper, claim.dataset, claim.table)
            mine, theirs = tables.setdefault(place, ({}, {}))
            (mine if each.line == line.name else theirs).setdefault(claim.metric, claim)
    for mine, theirs in tables.values():
        for metric in mine.keys() & theirs.keys():
            yield mine[metric], theirs[metric]


def _is_balanced(line: Line) -> bool:
    accuracy, mean_recall = (line.estimates.get(name) for name in ("accuracy", "mean_recall"))
    return bool(accuracy and mean_recall and math.isclose(accuracy.mean, mean_recall.mean))

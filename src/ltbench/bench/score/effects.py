"""What a row adds to its baseline, the row that a suite compares it with.

Rows that were measured on other images than a paper's, or trained for longer or shorter, cannot be
compared with the paper's; the difference between two of them can, with an interval.
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
    """What a row adds to one metric."""

    mean: float  # its mean over seeds minus the baseline's
    interval: Interval | None  # 95 %, over test images and, if there are several, seeds
    claimed: Sequence[float] = ()  # the same difference in papers with both rows in one table
    sources: Sequence[str] = ()  # of those numbers


@dataclass(frozen=True)
class Effect:
    """What a row adds to its baseline, by metric."""

    row: str
    baseline: str
    gains: Mapping[str, Gain]


def effects(table: Table, judged: Sequence[Judged]) -> list[Effect]:
    """Compute what each row with a baseline in the same table adds to it; order of the table."""
    lines = {line.name: line for line in table.lines}
    return [
        Effect(line.name, over.name, dict(_gains(line, over, table, judged)))
        for line in table.lines
        if (over := lines.get(line.row.baseline))
    ]


def missing(table: Table) -> list[str]:
    """List the rows whose baseline is not in the table."""
    names = {line.name for line in table.lines}
    return [
        f"What {line.name} adds is unknown: its baseline {line.row.baseline} is not in this table."
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
        pairs = list(_claimed(line, over, name, judged))
        yield (
            name,
            Gain(
                mean,
                interval,
                [own.value - other.value for own, other in pairs],
                [own.source for own, _ in pairs],
            ),
        )


def _claimed(
    line: Line, over: Line, name: str, judged: Sequence[Judged]
) -> Iterator[tuple[Claim, Claim]]:
    """Yield the claims of papers with both rows in one table; of one paper's, the more certain."""
    names = {name}
    if name == "accuracy" and _is_balanced(line) and _is_balanced(over):
        names.add("mean_recall")  # which is the same number then
    tables: dict[tuple[str, str, str], tuple[dict[str, Claim], dict[str, Claim]]] = {}
    for each in judged:
        claim = each.claim
        if claim.metric in names and each.line in (line.name, over.name):
            place = (claim.paper, claim.dataset, claim.table)
            own, baseline = tables.setdefault(place, ({}, {}))
            (own if each.line == line.name else baseline).setdefault(claim.metric, claim)
    for own, baseline in tables.values():
        for metric in own.keys() & baseline.keys():
            yield own[metric], baseline[metric]


def _is_balanced(line: Line) -> bool:
    accuracy, mean_recall = (line.estimates.get(name) for name in ("accuracy", "mean_recall"))
    return bool(accuracy and mean_recall and math.isclose(accuracy.mean, mean_recall.mean))

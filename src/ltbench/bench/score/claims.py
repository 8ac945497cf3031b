"""What papers report, set beside what was measured: gap and status, or why there is none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ltbench import shipped
from ltbench.bench.run.suite import flatten
from ltbench.bench.score import comparable
from ltbench.bench.score.leaderboard import Leaderboard, Line
from ltbench.bench.score.results import Row
from ltbench.bench.score.stats import Estimate
from ltbench.errors import UserError
from ltbench.metrics import catalogue
from ltbench.records import Record, parse_yaml

TOLERANCE = 1.0
"""Percentage points within which a measured number matches a published one, unless a claim says."""

DATASETS = {
    "cifar10": (10, "cifar10"),
    "cifar100": (100, "cifar100"),
    "imagenet_lt": (1000, "imagenetlt"),
    "inaturalist2018": (8142, "inat"),
    "inaturalist2019": (1010, "inat2019"),
}
"""Data set of a claim -> its number of classes, and what its configs' names end with."""


@dataclass(frozen=True)
class Claim:
    """A published number.

    Args:
        paper: arXiv number, or a name.
        table: Where it stands.
        protocol: How it was measured.
        certainty: ``verified``, ``second-hand`` or ``unverified``.
        dataset: Data set, as ``ltbench list datasets`` names it.
        row: Row of a suite that it is about.
        metric: Name of the metric.
        value: The number; fractions in [0, 1].
        tolerance: In the same unit.
        needs: Path into a record -> value that makes a run comparable.
    """

    paper: str
    table: str
    protocol: str
    certainty: str
    dataset: str
    row: str
    metric: str
    value: float
    tolerance: float
    needs: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Where it stands, and how certain it is."""
        return f"{self.paper}, {self.table} ({self.certainty})"


@dataclass(frozen=True)
class Judged:
    """A claim beside our own number.

    Args:
        claim: The published number.
        line: Name of our row; None where it was not run.
        ours: Our estimate.
        status: ``matched``, ``short``, ``better``, ``not run`` or ``not comparable``.
        reasons: Why it is not comparable.
    """

    claim: Claim
    line: str | None
    ours: Estimate | None
    status: str
    reasons: Sequence[str] = ()

    @property
    def gap(self) -> float | None:
        """Ours less theirs."""
        return self.ours.mean - self.claim.value if self.ours else None


def read(path: Path | None = None) -> list[Claim]:
    """Read the published numbers.

    Args:
        path: File; default: ``benchmarks/claims.yaml``, and no claims where it is missing.

    Raises:
        UserError: The file is damaged.
    """
    given, path = path, path or shipped.folder("benchmarks") / "claims.yaml"
    if not path.is_file():
        if given:
            raise UserError(f"there are no claims {path}: name a file, or leave --claims out.")
        return []
    try:
        return [claim for entry in parse_yaml(path.read_text()) for claim in _claims(entry)]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        why = f"one has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path} is no readable list of claims: {why}") from error


def _claims(entry: Mapping[str, Any]) -> Iterator[Claim]:
    for row, metrics in entry["rows"].items():
        for metric, value in metrics.items():
            unit = 100 if catalogue.metric(metric).percent else 1
            yield Claim(
                paper=str(entry["paper"]),
                table=str(entry["table"]),
                protocol=str(entry["protocol"]),
                certainty=str(entry["certainty"]),
                dataset=str(entry["dataset"]),
                row=row,
                metric=metric,
                value=float(value) / unit,
                tolerance=float(entry.get("tolerance", TOLERANCE)) / unit,
                needs=entry["needs"],
            )


def judge(claims: Sequence[Claim], board: Leaderboard) -> list[Judged]:
    """Set every claim about the data sets of a leaderboard beside its rows; those not run are last.

    Args:
        claims: The published numbers.
        board: Ours.
    """
    lines = [line for table in board.tables for line in table.lines]
    found = []
    for claim in claims:
        about = [line for line in lines if _same_data(claim, line.row.runs[0].record)]
        if not about:
            continue
        names = {claim.row, f"{claim.row}_{DATASETS.get(claim.dataset, (0, claim.dataset))[1]}"}
        mine = [line for line in about if line.name in names]
        found += [_judged(claim, line) for line in mine] or [Judged(claim, None, None, "not run")]
    return sorted(found, key=lambda each: each.line is None)


def _same_data(claim: Claim, record: Record) -> bool:
    """Say whether a run is about the data of a claim, perhaps as a folder that is called so."""
    classes, source = len(record["data"]["class_counts"]), _letters(record["data"]["source"])
    return record.get("dataset") == claim.dataset or (
        record.get("dataset") == "folder"
        and DATASETS.get(claim.dataset, (0, ""))[0] == classes
        and source.startswith(_letters(claim.dataset))
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _judged(claim: Claim, line: Line) -> Judged:
    ours = line.estimates.get(claim.metric)
    reasons = list(_unmet(claim.needs, line.row))
    if ours is None:
        return Judged(claim, line.name, None, "not comparable", [f"it has no {claim.metric}"])
    if reasons:
        return Judged(claim, line.name, ours, "not comparable", reasons)
    gap = ours.mean - claim.value
    low, high = ours.interval or (ours.mean, ours.mean)
    if abs(gap) <= claim.tolerance or low <= claim.value <= high:
        status = "matched"
    else:
        higher_is_better = catalogue.metric(claim.metric).higher_is_better
        status = "better" if (gap > 0) == higher_is_better else "short"
    return Judged(claim, line.name, ours, status)


def _unmet(needs: Mapping[str, Any], row: Row) -> Iterator[str]:
    record = row.runs[0].record
    flat = flatten({key: record[key] for key in ("data", "config")})
    flat["training_images"] = sum(record["data"]["class_counts"])
    flat["start"] = ", ".join(run.record["name"] for run in row.earlier) or None
    flat["config.model.backbone"] = comparable.backbone(record, row.earlier)[0]
    for name, wanted in needs.items():
        if flat.get(name) != wanted:
            short = name.rpartition(".")[2].replace("_", " ")
            yield f"{short} is {flat.get(name)}, not {wanted}"

"""Published numbers beside measured ones: gap and status, or why they cannot be compared."""

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

DATASETS = {  # data set of a claim -> number of classes, ending of the names of its configs
    "cifar10": (10, "cifar10"),
    "cifar100": (100, "cifar100"),
    "imagenet_lt": (1000, "imagenetlt"),
    "inaturalist2018": (8142, "inat"),
    "inaturalist2019": (1010, "inat2019"),
}


@dataclass(frozen=True)
class Claim:
    """A published number."""

    paper: str  # arXiv number, or a name
    table: str
    protocol: str  # how it was measured
    certainty: str  # verified, second-hand or unverified
    dataset: str  # as `ltbench list datasets` names it
    row: str  # row of a suite
    metric: str
    value: float  # fractions in [0, 1]
    tolerance: float  # in the same unit
    needs: Mapping[str, Any]  # path in a record -> value that a comparable run has

    @property
    def source(self) -> str:
        """Its table, and how certain it is."""
        return f"{self.paper}, {self.table} ({self.certainty})"


@dataclass(frozen=True)
class Judged:
    """A claim beside our own number."""

    claim: Claim
    line: str | None  # name of our row; None if it was not run
    ours: Estimate | None  # our estimate
    status: str  # matched, short, better, not run or not comparable
    reasons: Sequence[str] = ()  # why it is not comparable

    @property
    def gap(self) -> float | None:
        """Our number minus the published one."""
        return self.ours.mean - self.claim.value if self.ours else None


def read(path: Path | None = None) -> list[Claim]:
    """Read the published numbers; by default, those of ``benchmarks/claims.yaml`` if it exists.

    Raises:
        UserError: The file is missing or damaged.
    """
    if path and not path.is_file():
        raise UserError(f"--claims: there is no file {path}.")
    path = path or shipped.folder("benchmarks") / "claims.yaml"
    if not path.is_file():
        return []
    try:
        return [claim for entry in parse_yaml(path.read_text()) for claim in _claims(entry)]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        why = f"one lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path} is not a readable list of claims: {why}") from error


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
    """Compare the claims about the data of a leaderboard with its rows; those not run come last."""
    lines = [line for table in board.tables for line in table.lines]
    judged = []
    for claim in claims:
        about = [line for line in lines if _same_data(claim, line.row.runs[0].record)]
        if not about:
            continue
        names = {claim.row, f"{claim.row}_{DATASETS.get(claim.dataset, (0, claim.dataset))[1]}"}
        ours = [line for line in about if line.name in names]
        judged += [_judged(claim, line) for line in ours] or [Judged(claim, None, None, "not run")]
    return sorted(judged, key=lambda each: each.line is None)


def _same_data(claim: Claim, record: Record) -> bool:
    """Say whether a run is on the data of a claim, perhaps a folder of that name."""
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
    flat["mu"] = _mu(row)
    for name, value in needs.items():
        if flat.get(name) != value:
            short = name.rpartition(".")[2].replace("_", " ")
            yield f"{short} is {flat.get(name)}, not {value}"


def _mu(row: Row) -> int | None:
    """Return how many unlabelled images a step had for each labelled one: of the start, if any."""
    configs = (flatten(run.record["config"]) for run in (*row.earlier, row.runs[0]))
    return next((config["data.mu"] for config in configs if "data.mu" in config), None)

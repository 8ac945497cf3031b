"""A leaderboard as Markdown, CSV and JSON, and the cells that all forms share."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ltbench import escaping
from ltbench.bench.run.status import duration
from ltbench.bench.score.claims import Judged
from ltbench.bench.score.effects import Effect, Gain, effects, missing
from ltbench.bench.score.leaderboard import Leaderboard, Line, Table
from ltbench.bench.score.stats import Estimate
from ltbench.metrics.catalogue import metric
from ltbench.records.files import plain

LEGEND = (
    "Mean over seeds; ± is half of the 95 % interval: over seeds (t) if there are several, or in "
    "parentheses over test images (bootstrap) if there is one. Rows that share a rank cannot be "
    "told apart (paired bootstrap, Holm, 5 %)."
)


def columns(table: Table) -> list[str]:
    """Return the metrics that a table for reading shows."""
    return [n for n in table.metrics if "board" in metric(n).tables.split() or n == table.by]


def cell(name: str, estimate: Estimate | None) -> str:
    """Format an estimate: ``61.5 ±0.8``, or ``61.5 (±0.8)`` if there is one seed."""
    if estimate is None:
        return "-"
    shown = metric(name)
    text = shown.text(estimate.mean)
    if estimate.interval is None:
        return text
    low, high = estimate.interval
    half = shown.text((high - low) / 2)
    return f"{text} ±{half}" if estimate.seeds else f"{text} (±{half})"


def costs(line: Line) -> dict[str, str]:
    """Format what one seed of a row costs."""
    cost = line.cost
    whole = cost["wall_seconds_with_stages"]
    memory = cost["peak_memory_bytes"]
    return {
        "wall time": duration(cost["wall_seconds"]),
        "with stages": duration(whole) if whole > cost["wall_seconds"] else "",
        "images seen": f"{cost['images_seen']:,.0f}",
        "images/s": f"{cost['images_per_second']:,.0f}" if cost["images_per_second"] else "-",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "-",
        "device": cost["device"],
    }


def headings(table: Table) -> list[str]:
    """Return the headings of a table for reading."""
    titles = [metric(name).title for name in columns(table)]
    return ["rank", "row", "seeds", *titles, *costs(table.lines[0]), "differs in"]


def cells(table: Table, line: Line) -> list[str]:
    """Return the cells of a row, in the order of :func:`headings`."""
    values = [cell(name, line.estimates.get(name)) for name in columns(table)]
    differs = "; ".join(line.differs)
    seeds = str(len(line.row.runs))
    return [str(line.rank), line.name, seeds, *values, *costs(line).values(), differs]


def differing(table: Table) -> list[tuple[list[str], list[str]]]:
    """Return groups of rows that differ from most in the same way, and how."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for line in table.lines:
        if line.differs:
            rows.setdefault(tuple(line.differs), []).append(line.name)
    return [(names, list(differs)) for differs, names in rows.items()]


def remarks(table: Table) -> list[str]:
    """Return the remarks below a table."""
    usual = "; ".join(f"{name}: {value}" for name, value in table.shared.items())
    lines = [f"Trained with, unless a row says otherwise: {usual}.", *table.notes]
    for note in sorted({note for line in table.lines for note in line.notes}):
        rows = [line.name for line in table.lines if note in line.notes]
        of = "all rows" if len(rows) == len(table.lines) > 1 else ", ".join(rows)
        lines.append(f"{note} ({of}).")
    return lines


EFFECTS = "What a method adds to its baseline"
EFFECT_LEGEND = (
    "± is half of the 95 % interval of the difference, over test images and, if there are several, "
    "seeds; in brackets, the difference in papers that report both rows."
)


def effect_names(rows: Sequence[Effect]) -> list[str]:
    """Return the metrics that some effect has, in the order of the columns."""
    return list(dict.fromkeys(name for effect in rows for name in effect.gains))


def effect_cell(name: str, gain: Gain | None) -> str:
    """Format a gain: ``+5.7 ±1.1``, and in brackets what papers claim."""
    if gain is None:
        return "-"
    shown = metric(name)
    text = shown.signed(gain.mean)
    if gain.interval:
        text += f" ±{shown.text((gain.interval[1] - gain.interval[0]) / 2)}"
    if gain.claimed:
        ends = dict.fromkeys(map(shown.signed, (min(gain.claimed), max(gain.claimed))))
        text += f" [{' to '.join(ends)}]"
    return text


def effect_headings(rows: Sequence[Effect]) -> list[str]:
    """Return the headings of a table of effects."""
    return ["row", "over", *(metric(name).title for name in effect_names(rows))]


def effect_cells(rows: Sequence[Effect]) -> list[list[str]]:
    """Return the rows of a table of effects, in the order of :func:`effect_headings`."""
    names = effect_names(rows)
    return [
        [each.row, each.baseline, *(effect_cell(name, each.gains.get(name)) for name in names)]
        for each in rows
    ]


def effect_remarks(table: Table, rows: Sequence[Effect]) -> list[str]:
    """Return the remarks below a table of effects."""
    sources = [s for each in rows for gain in each.gains.values() for s in gain.sources]
    of = f" Papers: {'; '.join(dict.fromkeys(sources))}." if sources else ""
    return [*([EFFECT_LEGEND + of] if rows else []), *missing(table)]


def claim_cells(judged: Judged) -> list[str]:
    """Return the cells of a claim: row, metric, claimed, ours, gap, status, source."""
    claim = judged.claim
    shown = metric(claim.metric)
    gap = "" if judged.gap is None else shown.signed(judged.gap)
    why = f": {'; '.join(judged.reasons)}" if judged.reasons else ""
    return [
        judged.line or claim.row,
        shown.title,
        shown.text(claim.value),
        cell(claim.metric, judged.ours),
        gap,
        judged.status + why,
        claim.source,
    ]


CLAIM_HEADINGS = ("row", "metric", "claimed", "ours", "gap", "status", "source")


def markdown(board: Leaderboard, judged: Sequence[Judged]) -> str:
    """Format a leaderboard as Markdown."""
    lines = [f"# {_plain(board.title)}", ""]
    for table in board.tables:
        lines += [f"## {_plain(table.title)}", ""]
        lines += [*_grid(headings(table), [cells(table, line) for line in table.lines]), ""]
        lines += [*(f"- {_plain(remark)}" for remark in remarks(table)), ""]
        if gains := effects(table, judged):
            lines += [f"### {EFFECTS}", ""]
            lines += [*_grid(effect_headings(gains), effect_cells(gains)), ""]
        lines += [*(f"- {_plain(remark)}" for remark in effect_remarks(table, gains)), ""]
    if judged:
        lines += ["## Claimed and measured", ""]
        lines += [*_grid(CLAIM_HEADINGS, [claim_cells(each) for each in judged]), ""]
    lines += [LEGEND, ""]
    if board.problems:
        lines += ["## Not used", "", *(f"- {_plain(problem)}" for problem in board.problems), ""]
    return "\n".join(lines)


def _grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(map(_plain, row))} |"


def _plain(text: str) -> str:
    """Escape what users named, so that it becomes neither markup nor another cell."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return escaping.printable(" ".join(text.split()))


def as_csv(board: Leaderboard) -> str:
    """Write a line for each table, row and metric, in fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("seeds_low", "seeds_high", "images_low", "images_high")
    writer.writerow(["table", "row", "rank", "seeds", "metric", "mean", *ends, "differs"])
    for table in board.tables:
        for line in table.lines:
            for name, estimate in line.estimates.items():
                bounds = [*(estimate.seeds or ("", "")), *(estimate.images or ("", ""))]
                place = [table.title, line.name, line.rank, len(estimate.values)]
                row = [*place, name, estimate.mean, *bounds, "; ".join(line.differs)]
                writer.writerow(map(escaping.cell, row))
    return out.getvalue()


def as_json(board: Leaderboard, judged: Sequence[Judged]) -> str:
    """Write everything that a leaderboard contains, in fractions."""
    content = {
        "title": board.title,
        "tables": [
            _table(table)
            | {"effects": [dataclasses.asdict(each) for each in effects(table, judged)]}
            for table in board.tables
        ],
        "claims": [
            {**dataclasses.asdict(each), "gap": each.gap, "reasons": list(each.reasons)}
            for each in judged
        ],
        "problems": board.problems,
    }
    return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "by": table.by,
        "shared": table.shared,
        "notes": table.notes,
        "p": table.p.tolist(),
        "lines": [
            {
                "row": line.name,
                "family": line.row.family,
                "rank": line.rank,
                "estimates": {k: dataclasses.asdict(e) for k, e in line.estimates.items()},
                "differs": line.differs,
                "cost": line.cost,
                "notes": line.notes,
                "posthoc": line.posthoc,
                "priors": line.priors,
                "runs": [
                    {"folder": str(run.folder), "job_id": run.record.get("job_id")}
                    | {"seed": run.record["seed"], "git": run.record.get("git")}
                    for run in line.row.runs
                ],
            }
            for line in table.lines
        ],
    }

"""The report: one self-contained HTML file, readable on a phone and without a network."""

import base64
import csv
import io
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup

from ltbench import __version__, untrusted
from ltbench.bench.score import analyses
from ltbench.bench.score.claims import Judged
from ltbench.bench.score.effects import Effect, effects
from ltbench.bench.score.leaderboard import Leaderboard, Line, Table
from ltbench.bench.score.posthoc import CORRECTIONS
from ltbench.bench.score.stats import Interval
from ltbench.bench.show import figures, tables
from ltbench.bench.show.figures import Point, Series
from ltbench.metrics.catalogue import METRICS, metric, shown_in
from ltbench.metrics.counts import by_frequency
from ltbench.records import RunFolder
from ltbench.records.schema import MOST

BINS = 20  # groups of classes of similar frequency, if there are too many classes to draw each
PNG = b"\x89PNG\r\n\x1a\n"
PICTURES, PICTURE_BYTES = 4, 2_000_000  # of a row at most, and how large one may be
SAMPLES, OTHERS = "samples/last.png", "*.png"  # generated images, and pictures of traces
CURVES = {  # columns of a run's curves, of which the first that exists is drawn
    "val/accuracy": "on validation",
    "test_watched/accuracy": "on test (watched)",
    "val/fid": "on validation",
    "train/loss": "training loss",
}


def html(board: Leaderboard, judged: Sequence[Judged]) -> str:
    """Render the report of a leaderboard and the claims about it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ltbench.bench.show", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    problems = list(board.problems)
    return environment.get_template("report.html.j2").render(
        board=board,
        sections=[_section(table, judged, problems) for table in board.tables],
        problems=problems,
        sources=_by_source(judged),
        runs=sum(len(line.row.runs) for table in board.tables for line in table.lines),
        version=__version__,
    )


def _section(table: Table, judged: Sequence[Judged], problems: list[str]) -> dict[str, Any]:
    """Lay out a table; files that cannot be shown are added to ``problems``."""
    gains = effects(table, judged)
    names = tables.columns(table)
    rated = [name for name in table.metrics if metric(name).percent]
    priors = [line for line in table.lines if line.priors]
    return {
        "table": table,
        "by": metric(table.by).title,
        "metrics": [(name, metric(name)) for name in names],
        "matrix": [(name, metric(name)) for name in rated],
        "shades": {name: _shades(table, name) for name in rated},
        "cell": _cell,
        "costs": tables.costs,
        "remarks": tables.remarks(table),
        "tiles": _tiles(table),
        "figures": list(_figures(table, problems)),
        "legend": [line.name for line in table.lines[: figures.COLOURS]],
        "grey": max(0, len(table.lines) - figures.COLOURS),
        "differing": tables.differing(table),
        "effects": _effects(gains),
        "effect_remarks": tables.effect_remarks(table, gains),
        "posthoc": _posthoc(table),
        "priors": list(zip(priors, _prior_shades(priors), strict=True)),
        "samples": [
            (line.name, shown)
            for line in table.lines
            if (shown := _pictures(line, SAMPLES, problems))
        ],
        "analyses": list(_analyses(table, problems)),
        "pictures": {line.name: _pictures(line, OTHERS, problems) for line in table.lines},
        "details": _details,
        "best": _best(table),
    }


def _breakable(name: str) -> Markup:
    """Allow a long name to break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _by_source(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Return the claims by source; sources with rows that were run come first."""
    sources: dict[tuple[str, ...], dict[str, Any]] = {}
    for each in judged:
        claim = each.claim
        key = (claim.paper, claim.table, claim.protocol, claim.certainty)
        source = sources.setdefault(key, {"claim": claim, "measured": [], "missing": []})
        cells = tables.claim_cells(each)
        source["measured" if each.line else "missing"].append((each, cells))
    return sorted(sources.values(), key=lambda source: not source["measured"])


def _tiles(table: Table) -> list[tuple[str, str, str]]:
    """Return title, cell and row of the best by the most important metrics."""
    others = shown_in("tiles", METRICS)
    names = [table.by, *(name for name in others if name != table.by)]
    tiles = []
    for name in names:
        lines = [line for line in table.lines if name in line.estimates]
        if len(lines) > 1:
            sign = 1 if metric(name).higher_is_better else -1
            best = max(lines, key=lambda line: sign * line.estimates[name].mean)
            tiles.append((metric(name).title, tables.cell(name, best.estimates[name]), best.name))
    return tiles


def _shades(table: Table, name: str) -> dict[str, float]:
    """Return how good each row is, from 0 (worst) to 1 (best)."""
    means = {x.name: x.estimates[name].mean for x in table.lines if name in x.estimates}
    if not metric(name).higher_is_better:
        means = {row: -mean for row, mean in means.items()}
    return dict(zip(means, _scaled(list(means.values())), strict=True))


def _prior_shades(lines: Sequence[Line]) -> list[list[float]]:
    columns = zip(*(line.priors.values() for line in lines), strict=True)
    return [list(row) for row in zip(*map(_scaled, columns), strict=True)]


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1) for value in values]


def _cell(line: Line, name: str) -> dict[str, Any]:
    """Return the parts of a cell: its text, its sort key, and a tooltip with all details."""
    estimate = line.estimates.get(name)
    if estimate is None:
        return {"text": "-", "error": "", "sort": "", "details": ""}
    shown = metric(name)
    details = [f"mean of {len(estimate.values)}: {', '.join(map(shown.text, estimate.values))}"]
    for kind, bounds in (("seeds", estimate.seeds), ("test images", estimate.images)):
        if bounds:
            details.append(f"95 % over {kind}: {' to '.join(map(shown.text, bounds))}")
    error = tables.cell(name, estimate).partition(" ")[2]
    return {
        "text": shown.text(estimate.mean),
        "error": error,
        "sort": repr(estimate.mean),
        "details": "; ".join(details),
    }


def _best(table: Table) -> dict[str, float]:
    """Return the best mean of each metric in which the rows differ."""
    best = {}
    for name in table.metrics:
        means = [line.estimates[name].mean for line in table.lines if name in line.estimates]
        if len(set(means)) > 1:
            best[name] = max(means) if metric(name).higher_is_better else min(means)
    return best


def _figures(table: Table, problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield title, figure and explanation of each figure that the data allows."""
    rows, (x, y) = list(enumerate(table.lines)), AXES
    points = [
        Series(
            line.name,
            n,
            [(100 * line.estimates[x].mean, 100 * line.estimates[y].mean)],
            [_percent(line.estimates[y].interval)],
            _percent(line.estimates[x].interval),
        )
        for n, line in rows
        if {x, y} <= line.estimates.keys()
    ]
    if points:
        front = [points[n].name for n in figures.front_of([each.points[0] for each in points])]
        yield (
            "Accuracy against the worst class",
            figures.scatter(points, _axis(x), _axis(y), f"{metric(x).title} and {metric(y).title}"),
            "Up and right is better. The dashed edge is the front, which no row beats in both: "
            f"{', '.join(front)}.",
        )
    recalls = _series(table, _recalls)
    if recalls:
        binned = len(table.lines[0].row.runs[0].classes.counts) > 2 * BINS
        yield (
            "Recall over class frequency",
            figures.by_frequency(recalls, "recall of classes by their training images"),
            f"Means of {BINS} groups of classes of similar frequency."
            if binned
            else "One dot per class; the frequent ones are on the left.",
        )
    for group, explained in _GROUPS.items():
        names = [name for name in table.metrics if metric(name).group == group]
        bars = [Series(line.name, n, *_groups(line, names)) for n, line in rows[: figures.COLOURS]]
        if len(names) > 1 and any(bar.points for bar in bars):
            titles = [metric(name).title for name in names]
            yield (
                f"Recall of {', '.join(titles[:-1])} and {titles[-1]} classes",
                figures.bars(bars, titles, "recall by groups of classes"),
                explained,
            )
    curves = {line.name: _curves(line, problems) for line in table.lines}
    for column, what in CURVES.items():
        name = column.rpartition("/")[2]
        shown = METRICS.get(name)
        factor = 100 if shown and shown.percent else 1
        lines = _series(table, partial(_curve, curves, column=column, factor=factor))
        if lines:
            title = _axis(name, f" {what}") if shown else what
            yield (
                "Training",
                figures.curves(lines, title, title, factor == 100),
                "The first seed of each row.",
            )
            break


def _series(table: Table, points: Callable[[Line], Sequence[Point]]) -> list[Series]:
    rows = ((n, line.name, points(line)) for n, line in enumerate(table.lines))
    return [Series(name, n, values) for n, name, values in rows if values]


AXES = ("accuracy", "min_recall")  # of the figure in which every row is a point
_GROUPS = {
    "shots": "More than 100, 20 to 100, and fewer than 20 training images.",
    "ranks": "By the rank of a class, in the group sizes that the papers use.",
}


def _axis(name: str, where: str = "") -> str:
    shown = metric(name)
    return f"{shown.title}{where}{', %' if shown.percent else ''}"


def _percent(bounds: Interval | None) -> Interval | None:
    return (100 * bounds[0], 100 * bounds[1]) if bounds else None


def _recalls(line: Line) -> list[Point]:
    """Return (training images, recall in %) of each class, or of groups of similar classes."""
    by_run = [run.metrics.get("per_class_recall") for run in line.row.runs]
    if not all(by_run):
        return []
    recalls = np.nanmean(np.array(by_run, dtype=float), axis=0)
    counts = line.row.runs[0].classes.counts
    order = [c for c in by_frequency(counts) if np.isfinite(recalls[c]) and counts[c]]
    parts = np.array_split(order, BINS) if len(order) > 2 * BINS else [[c] for c in order]
    return [(float(counts[part].mean()), 100 * float(recalls[part].mean())) for part in parts]


def _groups(line: Line, names: Sequence[str]) -> tuple[list[Point], list[Interval | None]]:
    points, bounds = [], []
    for n, name in enumerate(names):
        if estimate := line.estimates.get(name):
            points.append((float(n), 100 * estimate.mean))
            bounds.append(_percent(estimate.interval))
    return points, bounds


def _curves(line: Line, problems: list[str]) -> list[dict[str, str]]:
    """Return the rows of the first run's curves, one per epoch."""
    path = RunFolder(line.row.runs[0].folder).curves
    try:
        return list(csv.DictReader(io.StringIO(untrusted.read_text(path), newline="")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path} cannot be read as curves: {error}")
        return []


def _curve(
    curves: Mapping[str, Sequence[Mapping[str, str]]], line: Line, column: str, factor: int
) -> list[Point]:
    """Return (part of the training in %, value) from the first run's curves."""
    points = []
    for row in curves[line.name]:
        try:
            epoch, value = float(row["epoch"]), factor * float(row[column])
        except (KeyError, TypeError, ValueError):  # not measured in this epoch
            continue
        if 0 <= epoch < MOST and abs(value) <= MOST:  # neither is then NaN
            points.append((epoch + 1, value))
    return [(100 * done / points[-1][0], value) for done, value in points]


def _effects(gains: Sequence[Effect]) -> dict[str, Any] | None:
    names = tables.effect_names(gains)
    rows = [(each, [_gain(each, name) for name in names]) for each in gains]
    return {"metrics": [metric(name) for name in names], "rows": rows} if rows else None


def _gain(effect: Effect, name: str) -> dict[str, str]:
    """Return the parts of a cell, and whether it is a gain, a loss, or neither beyond chance."""
    gain = effect.gains.get(name)
    text, _, error = tables.effect_cell(name, gain).partition(" ")
    if gain is None:
        return {"text": text, "error": "", "sort": "", "kind": "", "details": ""}
    low, high = gain.interval or (gain.mean, gain.mean)
    kind = ""
    if gain.interval and not low <= 0 <= high:
        kind = "up" if (low > 0) == metric(name).higher_is_better else "down"
    details = "; ".join(gain.sources)
    return {"text": text, "error": error, "sort": repr(gain.mean), "kind": kind, "details": details}


def _posthoc(table: Table) -> dict[str, Any] | None:
    """Return headings and cells of corrections: for each metric its own value, then corrected."""
    lines = [line for line in table.lines if line.posthoc]
    headings = [(metric(name), ["own", *rules]) for name, rules in CORRECTIONS.items()]
    places = [(name, rule) for name, rules in CORRECTIONS.items() for rule in ("", *rules)]
    rows = [(line.name, [_corrected(line, *place) for place in places]) for line in lines]
    without = [line.name for line in table.lines if not line.posthoc]
    return {"headings": headings, "rows": rows, "without": without} if rows else None


def _corrected(line: Line, name: str, rule: str) -> dict[str, Any]:
    """Return a cell: a row's own metric, or its value after a correction."""
    own = line.estimates[name].mean if name in line.estimates else float("nan")
    entry = line.posthoc.get(name, {}).get(rule, {})
    value = entry.get("value", float("nan")) if rule else own
    cell = {"text": metric(name).text(value), "sort": repr(value), "own": not rule}
    if not rule or not np.isfinite(value):
        return cell | {"change": "", "kind": ""}
    change = 100 * (value - own)
    good = change > 0 if metric(name).higher_is_better else change < 0
    kind = "" if abs(change) < 0.05 else "up" if good else "down"
    return cell | {"change": f"{change:+.1f} [{entry['constant']:.2g}]", "kind": kind}


def _pictures(line: Line, pattern: str, problems: list[str]) -> list[tuple[str, str]]:
    """Return (name, data URI) of the pictures in the run folder of the first seed."""
    folder = line.row.runs[0].folder
    return _embedded(folder, sorted(folder.glob(pattern))[:PICTURES], problems)


def _embedded(folder: Path, paths: Iterable[Path], problems: list[str]) -> list[tuple[str, str]]:
    """Return (name below the folder, data URI) of the pictures, none of which lies elsewhere."""
    pictures = []
    for path in paths:
        try:
            with untrusted.open_file(path, PICTURE_BYTES, below=folder) as file:
                content = file.read()
        except OSError as error:
            problems.append(f"{path} is not shown: {error.strerror}")
            continue
        if not content.startswith(PNG):
            problems.append(f"{path} is not shown: it is no PNG file")
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        pictures.append((name, f"data:image/png;base64,{base64.b64encode(content).decode()}"))
    return pictures


def _analyses(
    table: Table, problems: list[str]
) -> Iterator[tuple[str, list[tuple[Any, list[tuple[str, str]]]]]]:
    """Yield each run that was analysed, with its analyses and their pictures."""
    for run in (run for line in table.lines for run in line.row.runs):
        if results := analyses.of_run(run.folder):
            name = f"{run.record['name']}, seed {run.record['seed']}"
            yield (
                name,
                [(each, _embedded(run.folder, each.pictures, problems)) for each in results],
            )


def _details(line: Line) -> list[dict[str, Any]]:
    """Return the details of each run: its folder, its origin, its config."""
    runs = []
    for run in [*line.row.runs, *line.row.earlier]:
        record = run.record
        git = record.get("git") or {}
        commit = str(git.get("commit") or "unknown")[:12]
        facts = {
            "run folder": str(run.folder),
            "job id": record.get("job_id"),
            "method": f"{record.get('method')}, stage {record.get('stage')}",
            "commit": commit + (" with uncommitted changes" if git.get("dirty") else ""),
            "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
            "device": f"{record.get('device')}, {record.get('threads')} threads, "
            f"{record.get('precision')}, {record.get('world_size')} process(es)",
            "data": f"{record['data']['source']}, indices {record['data']['index_hash'][:16]}",
            "epochs, steps": f"{record.get('epochs')}, {record.get('steps')}",
            "starts from": ", ".join(
                f"{start.get('role')}: {start.get('job_id') or start.get('path')}"
                for start in record.get("lineage") or ()
            ),
            "differs from the paper": " ".join(record.get("deviations") or []),
            "run it again": shlex.join(
                ["ltbench", "bench", "reproduce", str(record.get("job_id"))]
            ),
        }
        runs.append(
            {
                "title": f"{record['name']}, seed {record['seed']}",
                "facts": {name: value for name, value in facts.items() if value},
                "config": yaml.safe_dump(json.loads(json.dumps(record["config"])), sort_keys=False),
            }
        )
    return runs

"""``ltbench bench reproduce``: run a job again from its record alone, and compare the metrics."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ltbench import records
from ltbench.errors import UserError
from ltbench.records import RunFolder
from ltbench.records.folder import RECORD

PLACES = (Path("runs"), Path("benchmarks/results"))
PARTS = ("seed_everything", "model", "data", "name")  # of a config, beside the trainer
OUTSIDE = ("logger", "profiler", "default_root_dir")  # they write, and change no result
ENVIRONMENT = ("versions", "git", "device", "threads", "precision", "world_size")


def find(job: str, besides: Path) -> Path:
    """Return the record of a job, by its run folder, its record or the start of its job id.

    Runs below the folder ``besides``, which reproduced others, do not count.

    Raises:
        UserError: There is no such job, or there are several.
    """
    path = Path(job)
    if path.exists():
        return RunFolder(path).record if path.is_dir() else path
    job_ids = {}
    for place in PLACES:
        for record in place.glob(f"**/{RECORD}"):
            if besides in record.parents:
                continue
            try:
                job_ids[record] = str(records.read_record(record).get("job_id"))
            except UserError:
                continue
    matching = [record for record, job_id in job_ids.items() if job_id.startswith(job)]
    if len({job_ids[record] for record in matching}) != 1:
        places = " and ".join(map(str, PLACES))
        number = "several jobs" if matching else "no job"
        raise UserError(f"found {number} in {places} with an id that starts with '{job}'.")
    return matching[0]


def reproduce(job: str, folder: Path, overrides: Sequence[str] = (), tolerance: float = 0) -> bool:
    """Run a job again below a folder and say whether its metrics agree, within a tolerance.

    Overrides are further arguments of ``ltbench fit``, such as where the data lies here.

    Each reproduction has a fresh folder; one that was interrupted goes on in its own.

    Raises:
        UserError: The job is not finished, starts from a run that is not here, or writes elsewhere.
    """
    path = find(job, folder)
    record = records.read_record(path)
    if record["status"] != "done":
        raise UserError(f"{path}: the run is {record['status']}, so its metrics are not final.")
    if not record.get("job_id"):
        raise UserError(f"{path} has no job id, so it cannot be run again.")
    before, now = record.get("revisions") or {}, records.revisions(record["config"])
    if before != now:
        older = ", ".join(sorted(name for name, _ in before.items() ^ now.items()))
        commit = (record.get("git") or {}).get("commit")
        raise UserError(
            f"{path} was recorded with an older recipe of {older}: check out "
            f"{f'commit {commit}' if commit else 'the ltbench of then'} to reproduce it."
        )
    for start in record.get("lineage") or ():
        if start.get("path") and not os.path.exists(start["path"]):  # noqa: PTH110 - any text
            raise UserError(
                f"{path} starts from {start['path']} (job {start.get('job_id')}), which is not "
                "here: reproduce that job, then point to it with --model.<argument>.path."
            )
    job_id = records.plain_name(record["job_id"], f"the job id in {path}")
    text = yaml.safe_dump(_alone(record["config"], path), sort_keys=False)
    place = _place(folder, job_id, text)
    command = [sys.executable, "-m", "ltbench", "fit", "--config", str(RunFolder(place).config)]
    command += [f"--trainer.default_root_dir={place}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(record.get("threads") or 1)}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise UserError(f"the run failed; its files are in {place}.")
    newest = max(place.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    return compare(record, records.read_record(newest), tolerance, Console())


def _place(folder: Path, job_id: str, config: str) -> Path:
    """Return the folder of a reproduction: that of one which was interrupted, else a fresh one.

    Nothing is removed: what stands in the way was not made here, or is a result of earlier code,
    which says nothing about today's. The config is written whole and first, so it marks a folder
    that was made here, for this very config.
    """
    for attempt in itertools.count(1):
        place = folder / f"{job_id}-{attempt}"
        run = RunFolder(place)
        if not os.path.lexists(place):
            records.require_place(run.config)
            records.write_text(run.config, config)
            return place
        begun = not place.is_symlink() and run.config.is_file() and run.config.read_text() == config
        if begun and not any(map(_is_done, place.glob(f"*/{RECORD}"))):
            return place
    raise AssertionError


def _is_done(record: Path) -> bool:
    return bool(records.read_record(record)["status"] == "done")


def _alone(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a config that writes below the reproduction's folder alone.

    Raises:
        UserError: A callback, strategy or plugin of it names a place of its own.
    """
    trainer = {k: v for k, v in (config.get("trainer") or {}).items() if k not in OUTSIDE}
    for name, text in _texts([trainer.get(part) for part in ("callbacks", "strategy", "plugins")]):
        if "/" in text or ".." in text or re.search("dir|path|file|config", name):
            raise UserError(
                f"{path}: a callback or strategy of this run has {name or 'an argument'} "
                f"{text:.80}, which may be a place to write to; train it with a config of your "
                "own instead."
            )
    return {key: value for key, value in config.items() if key in PARTS} | {"trainer": trainer}


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - recursive
    """Yield the name and value of each argument that is a text, but for the names of classes."""
    if isinstance(value, str):
        yield ("" if name == "class_path" else name), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, name)


def compare(
    record: Mapping[str, Any], again: Mapping[str, Any], tolerance: float, console: Console
) -> bool:
    """Print which metrics differ, and what else does; return whether they agree."""
    before, after = dict(_metrics(record["metrics"])), dict(_metrics(again["metrics"]))
    differing = {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    if not differing:
        console.print(f"reproduced: all {len(before)} metrics are the same to the last digit.")
        return True
    table = Table("metric", Column("recorded", justify="right"), Column("now", justify="right"))
    worst = 0.0
    for name, (old, new) in differing.items():
        table.add_row(escape(name), _number(old), _number(new))
        worst = max(worst, abs(old - new) if old is not None and new is not None else float("inf"))
    console.print(table)
    for name in ENVIRONMENT:
        if record.get(name) != again.get(name):
            console.print(f"{name}: {record.get(name)} then, {again.get(name)} now.", markup=False)
    agree = worst <= tolerance
    verdict = "agree within the tolerance" if agree else "differ"
    console.print(f"{len(differing)} of {len(before)} metrics {verdict}, by at most {worst:.4g}.")
    return agree


def _metrics(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _metrics(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from _metrics(item, f"{name}[{n}]")
    elif isinstance(value, int | float):
        yield name, float(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"

"""The results of ``ltbench analyze`` in a run folder, for the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench import untrusted
from ltbench.records import RunFolder


@dataclass(frozen=True)
class Analysis:
    """An analysis of a trained network."""

    title: str
    summary: list[tuple[str, str]]  # labels and values
    pictures: list[Path]
    tables: list[str]  # names of files beside the pictures


def of_run(folder: Path) -> list[Analysis]:
    """Return the analyses of a run, by name; for a damaged one, a title that says so."""
    return list(_read(RunFolder(folder).analyses))


def _read(folder: Path) -> Iterator[Analysis]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = untrusted.read_json(path)
            yield Analysis(
                str(content["title"]),
                [(str(label), str(value)) for label, value in content["summary"]],
                [folder / name for name in _names(content["figures"])],
                _names(content["tables"]),
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            yield Analysis(f"{path} is not a readable result of an analysis: {error}", [], [], [])


def _names(names: Any) -> list[str]:  # noqa: ANN401 - JSON
    """Leave out names that lead out of the folder."""
    return [name for name in names if Path(name).name == name]

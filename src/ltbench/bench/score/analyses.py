"""What ``ltbench analyze`` left in a run folder, for the report."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.records import RunFolder


@dataclass(frozen=True)
class Analysis:
    """An analysis of a trained network.

    Attributes:
        title: One line.
        summary: Rows of label and value.
        pictures: Files.
        tables: Names of files beside the pictures.
    """

    title: str
    summary: list[tuple[str, str]]
    pictures: list[Path]
    tables: list[str]


def of_run(folder: Path) -> list[Analysis]:
    """Return the analyses of a run, by name; of a damaged one, a title that says so."""
    return list(_read(RunFolder(folder).analyses))


def _read(folder: Path) -> Iterator[Analysis]:
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text())
            yield Analysis(
                str(found["title"]),
                [(str(label), str(value)) for label, value in found["summary"]],
                [folder / name for name in _names(found["figures"])],
                _names(found["tables"]),
            )
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            yield Analysis(f"{path} is no readable result of an analysis: {error}", [], [], [])


def _names(found: Any) -> list[str]:  # noqa: ANN401 - JSON
    """Return names of files; none of them leads out of the folder."""
    return [name for name in found if Path(name).name == name]

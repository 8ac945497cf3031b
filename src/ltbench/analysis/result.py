"""The results of an analysis, and their files: JSON, figures and tables beside the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltbench import escaping, records, untrusted
from ltbench.errors import UserError
from ltbench.records import RunFolder

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#009E73", "#D55E00", "#AA4499", "#777777"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
GROUP_COLOURS = {"head": BLUE, "mid": GREEN, "tail": ORANGE}

ALIKE = ("split", "loss", "images", "steps", "second")  # settings that compared results share

Others = Mapping[str, Mapping[str, Any]]
"""Name of another network -> name of a class -> its results."""


@dataclass(frozen=True)
class Place:
    """Where a trained network lies, and where its results go."""

    folder: Path  # its run folder
    checkpoint: Path  # its weights
    config: Path  # what builds it
    results: Path  # folder

    @classmethod
    def of(
        cls,
        run: Path | None,
        ckpt_path: Path | None,
        selection: str = "last",
        config: Path | None = None,
        output: Path | None = None,
    ) -> "Place":
        """Find checkpoint and config by the run folder, or the run folder by the checkpoint.

        Raises:
            UserError: Not exactly one of ``run`` and ``ckpt_path`` is given, or a file is missing.
        """
        if (run is None) == (ckpt_path is None):
            raise UserError("analyze needs either --run FOLDER or --ckpt_path FILE.")
        checkpoint = ckpt_path or RunFolder(run or Path()).checkpoint(selection)
        folder = RunFolder(run) if run else RunFolder.of_checkpoint(checkpoint)
        if not checkpoint.is_file():
            raise UserError(f"there is no checkpoint {checkpoint}.")
        config = config or folder.config
        if not config.is_file():
            raise UserError(
                f"there is no config {config}: name that of the run with --config FILE."
            )
        return cls(folder.path, checkpoint, config, output or folder.analyses)


@dataclass
class Result:
    """The results of an analysis."""

    title: str  # one line
    summary: list[tuple[str, str]]  # labels and values, for people
    values: Mapping[str, Any]  # everything, for programs
    figures: dict[str, Figure] = field(default_factory=dict)  # by suffix; "": the main one
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # likewise


class Output:
    """The files of one analysis: ``<stem>.json``, ``<stem>[-<name>].png`` and ``.csv``.

    The stem is the analysis; it also names a split other than the ``usual`` one, and weights other
    than the last.

    The JSON holds ``analysis``, ``title``, ``summary`` (rows of label and value), ``figures`` and
    ``tables`` (names of files in the same folder), ``checkpoint``, ``settings``, ``versions`` and
    the analysis' own values.
    """

    def __init__(
        self, place: Place, analysis: str, settings: Mapping[str, Any], usual: str
    ) -> None:
        self.place, self.analysis = place, analysis
        self.settings = {name: _plain(value) for name, value in settings.items()}
        weights, split = place.checkpoint.stem, settings["split"]
        self._of_last = analysis if split == usual else f"{analysis}-{split}"
        self.stem = self._of_last if weights == "last" else f"{self._of_last}-{weights}"
        self.path = place.results / f"{self.stem}.json"

    def read(self) -> dict[str, Any] | None:
        """Return the result of an earlier call, or None.

        Raises:
            UserError: The file is damaged.
        """
        return read(self.path) if self.path.is_file() else None

    @property
    def name(self) -> str:
        """The network's name in comparisons: its run folder, and which weights."""
        return _called(self.place.folder, self.stem, self._of_last)

    def others(self, places: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """Read this analysis of other networks, from their run folders or JSON files.

        Returns:
            The results of each class, by the network's name and the class's name.

        Raises:
            UserError: A result is missing, damaged, of another analysis or of other settings.
        """
        networks: dict[str, dict[str, Any]] = {}
        for place in places:
            stored = RunFolder(place).analyses / f"{self._of_last}.json"
            path = place if place.suffix == ".json" else stored
            if not path.is_file():
                raise UserError(
                    f"there is no {path}: run 'ltbench analyze {self.analysis}' on that network, "
                    f"with --split {self.settings['split']}."
                )
            result, settings = read(path), self.settings
            other = result.get("settings")
            other = other if isinstance(other, dict) else {}
            differing = [
                f"{k}: {other.get(k)} there, {settings[k]} here"
                for k in ALIKE
                if k in settings and other.get(k) != settings[k]
            ]
            if result["analysis"] != self.analysis or not _of_classes(result.get("classes")):
                raise UserError(f"{path} has no results of analyze {self.analysis}.")
            if differing:
                raise UserError(
                    f"{path} cannot be compared: its settings differ ({'; '.join(differing)})."
                )
            folder = path.parent.parent if path.parent.name == "analysis" else path.parent
            name = _called(folder, path.stem, self._of_last)
            alike = [n for n in (self.name, *networks) if n == name or n.startswith(f"{name} (")]
            name = f"{name} ({len(alike) + 1})" if alike else name
            networks[name] = {entry.get("name", k): entry for k, entry in result["classes"].items()}
        return networks

    def save(self, result: Result) -> None:
        """Write all files, each of them whole; the JSON, which names the others, comes last."""
        named: dict[str, list[str]] = {"figures": [], "tables": []}
        for name, figure in result.figures.items():
            path = self._beside(name, "png")
            records.write_whole(path, partial(figure.savefig, format="png"))
            named["figures"].append(path.name)
        for name, table in result.tables.items():
            path = self._beside(name, "csv")
            records.write_whole(path, partial(escaping.cells(table).to_csv, index=False))
            named["tables"].append(path.name)
        content = {
            "analysis": self.analysis,
            "title": result.title,
            "summary": [list(row) for row in result.summary],
            **named,
            "checkpoint": str(self.place.checkpoint),
            "settings": self.settings,
            "versions": records.versions(),
            **result.values,
        }
        records.write_json(self.path, content)

    def _beside(self, name: str, ending: str) -> Path:
        return self.path.with_name(f"{self.stem}{'-' if name else ''}{name}.{ending}")


def read(path: Path) -> dict[str, Any]:
    """Read the JSON of an analysis.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        content: dict[str, Any] = untrusted.read_json(path)
        content["analysis"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable result of an analysis: {error}") from error
    return content


def _of_classes(results: Any) -> bool:  # noqa: ANN401 - JSON
    return (
        isinstance(results, dict)
        and bool(results)
        and all(isinstance(entry, dict) for entry in results.values())
    )


def shared(names: Sequence[str], beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the classes that all other networks were measured on, too.

    Raises:
        UserError: There are none.
    """
    common = [name for name in names if all(name in classes for classes in beside.values())]
    if not common:
        raise UserError(
            f"the results of {', '.join(beside)} have no class in common with {', '.join(names)}."
        )
    return common


def figure(
    rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.0, **share: bool | str
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its panels, row by row; width and height of a panel are in inches."""
    made = Figure(figsize=(columns * width, rows * height), dpi=120, layout="constrained")
    grid = made.subplots(rows, columns, squeeze=False, **share)  # type: ignore[call-overload]
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return made, grid.tolist()


def _called(folder: Path, stem: str, of_last: str) -> str:
    return " ".join([folder.resolve().name, *stem.removeprefix(of_last).strip("-").split()])


def percent(share: float) -> str:
    """Format a share for a summary."""
    return f"{100 * share:.1f} %"


def _plain(value: Any) -> Any:  # noqa: ANN401 - what a command line holds
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value

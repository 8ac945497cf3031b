"""What an analysis found, and how it is kept: JSON, figures and tables beside the run's record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltbench import records
from ltbench.errors import UserError
from ltbench.records import RunFolder

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#009E73", "#D55E00", "#AA4499", "#777777"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
GROUP_COLOURS = {"head": BLUE, "mid": GREEN, "tail": ORANGE}

ALIKE = ("split", "loss", "images", "steps", "second")
"""Settings in which results that are compared must agree."""

Others = Mapping[str, Mapping[str, Any]]
"""What is stored of each class, by its name, by what another network is called."""


@dataclass(frozen=True)
class Place:
    """Where a trained network lies, and where what is found about it goes.

    Attributes:
        folder: Its run folder.
        checkpoint: Its weights.
        config: What builds it.
        results: Folder of the results.
    """

    folder: Path
    checkpoint: Path
    config: Path
    results: Path

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

        Args:
            run: A run folder.
            ckpt_path: A checkpoint, in place of it.
            selection: Which of a run folder's checkpoints.
            config: In place of the run folder's own.
            output: Folder of the results; default: ``analysis`` in the run folder.

        Raises:
            UserError: Not exactly one of the two is given, or a file is missing.
        """
        if (run is None) == (ckpt_path is None):
            raise UserError("analyze needs --run FOLDER or --ckpt_path FILE, one of the two.")
        checkpoint = ckpt_path or RunFolder(run or Path()).checkpoint(selection)
        folder = RunFolder(run) if run else RunFolder.of_checkpoint(checkpoint)
        if not checkpoint.is_file():
            raise UserError(f"there is no checkpoint {checkpoint}.")
        config = config or folder.config
        if not config.is_file():
            raise UserError(f"there is no config {config}: name the run's with --config FILE.")
        return cls(folder.path, checkpoint, config, output or folder.analyses)


@dataclass
class Result:
    """What an analysis found.

    Attributes:
        title: One line.
        summary: Label and value, for people.
        values: Everything, for programs.
        figures: Pictures, by what tells them apart; "" for the main one.
        tables: Tables, likewise.
    """

    title: str
    summary: list[tuple[str, str]]
    values: Mapping[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


class Output:
    """The files of one analysis: ``<stem>.json``, ``<stem>[-<name>].png`` and ``.csv``.

    The stem is the analysis; a split other than the usual one is named in it, and weights other
    than the last.

    The JSON holds ``analysis``, ``title``, ``summary`` (rows of label and value), ``figures`` and
    ``tables`` (names of files in the same folder), ``checkpoint``, ``settings``, ``versions`` and
    what is the analysis' own.

    Args:
        place: Where the network lies.
        analysis: Name of the analysis.
        settings: What it was asked for.
        usual: The split that it takes where it is told no other.
    """

    def __init__(
        self, place: Place, analysis: str, settings: Mapping[str, Any], usual: str
    ) -> None:
        """Remember where to write."""
        self.place, self.analysis = place, analysis
        self.settings = {name: _plain(value) for name, value in settings.items()}
        weights, split = place.checkpoint.stem, settings["split"]
        self._of_last = analysis if split == usual else f"{analysis}-{split}"
        self.stem = self._of_last if weights == "last" else f"{self._of_last}-{weights}"
        self.path = place.results / f"{self.stem}.json"

    def read(self) -> dict[str, Any] | None:
        """Return what an earlier call wrote, or None.

        Raises:
            UserError: The file is damaged.
        """
        return read(self.path) if self.path.is_file() else None

    @property
    def name(self) -> str:
        """What the network is called beside others: its run folder, and which weights."""
        return _called(self.place.folder, self.stem, self._of_last)

    def others(self, places: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """Read this analysis of other networks.

        Args:
            places: Run folders, or JSON files.

        Returns:
            What is stored of each class, by what the network is called, by the class's name.

        Raises:
            UserError: A result is missing, damaged, of another analysis or was measured otherwise.
        """
        found: dict[str, dict[str, Any]] = {}
        for place in places:
            stored = RunFolder(place).analyses / f"{self._of_last}.json"
            path = place if place.suffix == ".json" else stored
            if not path.is_file():
                raise UserError(
                    f"there is no {path}: run 'ltbench analyze {self.analysis}' on that network, "
                    f"with --split {self.settings['split']}."
                )
            result, settings = read(path), self.settings
            theirs = result.get("settings", {})
            differing = [
                f"{k}: {theirs.get(k)} there, {settings[k]} here"
                for k in ALIKE
                if k in settings and theirs.get(k) != settings[k]
            ]
            if result["analysis"] != self.analysis or not result.get("classes"):
                raise UserError(f"{path} holds no class of analyze {self.analysis}.")
            if differing:
                raise UserError(
                    f"{path} cannot stand beside this: measured otherwise ({'; '.join(differing)})."
                )
            folder = path.parent.parent if path.parent.name == "analysis" else path.parent
            name = _called(folder, path.stem, self._of_last)
            alike = [n for n in (self.name, *found) if n == name or n.startswith(f"{name} (")]
            name = f"{name} ({len(alike) + 1})" if alike else name
            found[name] = {entry.get("name", k): entry for k, entry in result["classes"].items()}
        return found

    def save(self, result: Result) -> None:
        """Write all files, each of them whole; the JSON, which names the others, last."""
        named: dict[str, list[str]] = {"figures": [], "tables": []}
        for name, figure in result.figures.items():
            path = self._beside(name, "png")
            records.write_whole(path, partial(figure.savefig, format="png"))
            named["figures"].append(path.name)
        for name, table in result.tables.items():
            path = self._beside(name, "csv")
            records.write_whole(path, partial(table.to_csv, index=False))
            named["tables"].append(path.name)
        found = {
            "analysis": self.analysis,
            "title": result.title,
            "summary": [list(row) for row in result.summary],
            **named,
            "checkpoint": str(self.place.checkpoint),
            "settings": self.settings,
            "versions": records.versions(),
            **result.values,
        }
        records.write_json(self.path, found)

    def _beside(self, name: str, ending: str) -> Path:
        return self.path.with_name(f"{self.stem}{'-' if name else ''}{name}.{ending}")


def read(path: Path) -> dict[str, Any]:
    """Read the JSON of an analysis.

    Raises:
        UserError: There is none, or it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        found["analysis"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no readable result of an analysis: {error}") from error
    return found


def shared(names: Sequence[str], beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the classes that all other networks were measured on, too.

    Raises:
        UserError: There is none.
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
    """Return a figure and its panels, row by row.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        width: Of a panel, in inches.
        height: Of a panel, in inches.
        **share: ``sharex`` and ``sharey`` of matplotlib.
    """
    made = Figure(figsize=(columns * width, rows * height), dpi=120, layout="constrained")
    grid = made.subplots(rows, columns, squeeze=False, **share)  # type: ignore[call-overload]
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return made, grid.tolist()


def _called(folder: Path, stem: str, of_last: str) -> str:
    return " ".join([folder.resolve().name, *stem.removeprefix(of_last).strip("-").split()])


def percent(share: float) -> str:
    """Write a share for a summary."""
    return f"{100 * share:.1f} %"


def _plain(value: Any) -> Any:  # noqa: ANN401 - what a command line holds
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value

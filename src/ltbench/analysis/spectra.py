"""Numbers and pictures of class-wise spectra, from stored Ritz values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ltbench import escaping
from ltbench.analysis.lanczos import density
from ltbench.analysis.result import COLOURS, GROUP_COLOURS, figure

FLOOR = 1e-7  # added to the density, so that its logarithm exists everywhere

Entry = Mapping[str, Any]  # the results of a class


def extremes(runs: Iterable[Entry], size: int) -> dict[str, Any]:
    """Return the extreme eigenvalues, their ratio and the trace of a class with P parameters.

    Ritz values lie within the spectrum, so the outermost of all runs is the best bound. The trace
    is Hutchinson's: P times the mean of each run's quadrature.

    Args:
        runs: ``nodes``, ``weights`` and ``errors`` of each start.
        size: P.

    Returns:
        ``lambda_min`` and ``lambda_max``, each with ``_error``: an eigenvalue lies within it;
        ``ratio``, |lambda_min| / lambda_max, 0 if there is no negative one; ``trace`` and
        ``trace_error``, the standard error over the runs, None for one run.
    """
    spectra = list(runs)
    least = min(spectra, key=lambda run: run["nodes"][0])
    most = max(spectra, key=lambda run: run["nodes"][-1])
    low, high = least["nodes"][0], most["nodes"][-1]
    traces = [size * float(np.dot(run["nodes"], run["weights"])) for run in spectra]
    spread = float(np.std(traces, ddof=1) / np.sqrt(len(traces))) if len(traces) > 1 else None
    return {
        "lambda_min": low,
        "lambda_min_error": least["errors"][0],
        "lambda_max": high,
        "lambda_max_error": most["errors"][-1],
        "ratio": max(-low, 0.0) / high if high > 0 else None,
        "trace": float(np.mean(traces)),
        "trace_error": spread,
    }


def group_mean(classes: Iterable[Entry], group: str) -> dict[str, Any]:
    """Return the means over the measured classes of a group; empty if there are none."""
    members = [entry for entry in classes if entry["group"] == group]
    names = ("lambda_min", "lambda_max", "ratio", "trace", "loss", "accuracy", "test_recall")
    means: dict[str, Any] = {"classes": len(members)} if members else {}
    for name in names if members else ():
        values = [entry[name] for entry in members if entry[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def caption(entry: Entry) -> str:
    """Format the numbers of a class as a line."""
    error = entry["trace_error"]
    spread = "" if error is None else f" ± {float(f'{error:.2g}'):g}"
    return (
        f"λmin {entry['lambda_min']:.3g}, λmax {entry['lambda_max']:.3g}, "
        f"|λmin|/λmax {short(entry['ratio'])}, trace {entry['trace']:.3g}{spread}"
    )


def short(ratio: float | None) -> str:
    """Format |lambda_min| / lambda_max."""
    return "undefined" if ratio is None else f"{ratio:.3g}"


def comparison(runs: Mapping[str, Sequence[Entry]]) -> pd.DataFrame:
    """Tabulate each class of each run: ``run``, ``class``, ``group``, and what was measured."""
    columns = (
        *("train_images", "images", "lambda_min", "lambda_max", "ratio"),
        *("trace", "trace_error", "loss", "accuracy", "test_recall"),
    )
    return pd.DataFrame(
        {"run": run, "class": entry["name"], "group": entry["group"]}
        | {column: entry[column] for column in columns}
        for run, entries in runs.items()
        for entry in entries
    )


def picture(runs: Mapping[str, Sequence[Entry]]) -> Figure:
    """Draw densities: a column per run, the more frequent class above the rarer, with shared axes.

    ``runs`` holds as many classes for each run; a single run needs no name.
    """
    rows = max(len(classes) for classes in runs.values())
    width = 5.4 if len(runs) < 3 else 4.2
    drawn, panels = figure(rows, len(runs), width=width, height=2.5, sharex=True, sharey=True)
    for column, (name, classes) in enumerate(runs.items()):
        for row, entry in enumerate(classes):
            axes = panels[row][column]
            _draw(axes, entry, GROUP_COLOURS[entry["group"]])
            title = _title(entry, name if row == 0 else "")
            axes.set_title(escaping.drawn(title), fontsize=9)
            _annotate(axes, entry)
            if column == 0:
                axes.set_ylabel("density")
        panels[-1][column].set_xlabel("eigenvalue (symmetric log)")
    _limits(panels, [entry for classes in runs.values() for entry in classes])
    return drawn


def by_class(entries: Sequence[Entry]) -> Figure:
    """Draw the extreme eigenvalues and their ratio of each class, by decreasing frequency."""
    drawn, ((above,), (below,)) = figure(2, 1, width=6.4, height=2.5, sharex=True)
    places = np.arange(len(entries))
    colours = [GROUP_COLOURS[entry["group"]] for entry in entries]
    for place, entry, colour in zip(places, entries, colours, strict=True):
        ends = (entry["lambda_min"], entry["lambda_max"])
        above.plot([place, place], ends, color=colour, linewidth=3, solid_capstyle="butt")
        for end, offset in zip(ends, (-9, 4), strict=True):
            above.annotate(
                f"{end:.3g}", (place, end), (0, offset), textcoords="offset points",
                ha="center", fontsize=7,
            )  # fmt: skip
    above.axhline(0, color="black", linewidth=0.8)
    above.set(ylabel="λmin to λmax", yscale="symlog")
    above.margins(y=0.2)
    below.bar(places, [entry["ratio"] or 0 for entry in entries], color=colours)
    below.set(ylabel="|λmin| / λmax", xlabel="class, by decreasing training images")
    names = [escaping.drawn(entry["name"]) for entry in entries]
    below.set_xticks(places, names, rotation=45, ha="right")
    present = {entry["group"] for entry in entries}
    for name, colour in GROUP_COLOURS.items():
        if name in present:
            below.bar([0], [0], color=colour, label=name)
    below.legend(frameon=False, fontsize=8)
    return drawn


def ratios(runs: Mapping[str, Sequence[Entry]]) -> Figure:
    """Draw |lambda_min| / lambda_max of the same classes of each run, one bar per run."""
    entries = next(iter(runs.values()))
    drawn, ((axes,),) = figure(width=max(4.8, 1.4 + 0.25 * len(runs) * len(entries)), height=3.2)
    places, wide = np.arange(len(entries)), 0.8 / len(runs)
    for number, (run, classes) in enumerate(runs.items()):
        offset = (number - (len(runs) - 1) / 2) * wide
        heights = [entry["ratio"] or 0 for entry in classes]
        colour = COLOURS[number % len(COLOURS)]
        label = escaping.drawn(run)
        bars = axes.bar(places + offset, heights, 0.9 * wide, color=colour, label=label)
        words = [short(entry["ratio"]) for entry in classes]
        axes.bar_label(bars, words, fontsize=7, padding=2, rotation=90)
    names = [escaping.drawn(f"{e['name']}\n({e['group']}, {e['train_images']})") for e in entries]
    axes.set_xticks(places, names, fontsize=8)
    axes.set(ylabel="|λmin| / λmax", xlabel="class (group, training images)")
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return drawn


def _title(entry: Entry, run: str) -> str:
    facts = [f"|λmin|/λmax = {short(entry['ratio'])}"]
    if entry["test_recall"] is not None:
        facts.append(f"test recall {100 * entry['test_recall']:.1f} %")
    what = f"class {entry['name']} ({entry['group']}, {entry['train_images']} training images)"
    return "\n".join(filter(None, [run, what, ", ".join(facts)]))


def _draw(axes: Axes, entry: Entry, colour: str) -> None:
    runs = list(entry["runs"].values())
    grid, values = density(
        [np.array(run["nodes"]) for run in runs], [np.array(run["weights"]) for run in runs]
    )
    axes.fill_between(grid, FLOOR, values + FLOOR, color=colour, alpha=0.35, linewidth=0)
    axes.plot(grid, values + FLOOR, color=colour, linewidth=0.8)


def _annotate(axes: Axes, entry: Entry) -> None:
    for name, text, align, shift in (("lambda_min", "λmin", "right", -3),
                                     ("lambda_max", "λmax", "left", 3)):  # fmt: skip
        value = entry[name]
        axes.axvline(value, color="black", linewidth=0.7, linestyle=":")
        axes.annotate(
            f"{text} = {value:.3g}", (value, 0.86), xycoords=("data", "axes fraction"),
            xytext=(shift, 0), textcoords="offset points", ha=align, fontsize=8,
        )  # fmt: skip


def _limits(panels: Sequence[Sequence[Axes]], entries: Sequence[Entry]) -> None:
    """Give all panels one symmetric-log axis with room for the words at both ends."""
    low = max(-entry["lambda_min"] for entry in entries)
    high = max(abs(entry["lambda_max"]) for entry in entries)
    linear = 10.0 ** np.floor(np.log10(max(low, high, 1e-6)) - 2)
    powers = linear * 10.0 ** np.arange(1, 7)
    left, right = -max(low, linear) * 200, max(high, linear) * 200
    ticks = [0.0, *powers[powers < right], *-powers[powers < -left]]
    for axes in (axes for row in panels for axes in row):
        axes.set_xscale("symlog", linthresh=linear)
        axes.set(yscale="log", xlim=(left, right), ylim=(FLOOR / 2, None))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())

"""A plot of the traces of a method: shares, multipliers, gains, by class and by epoch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ltbench import escaping

_NAMED = 12  # classes that an axis has room for

Array = NDArray[Any]
Panel = tuple[str, Callable[[Axes], object]]


def trace_figure(traces: Mapping[str, Array], class_names: Sequence[str]) -> Figure:
    """Plot the arrays of ``traces.npz``, one panel each.

    Args:
        traces: For each name an array and ``<name>.epoch`` (E,). Shape (E,) is a line; (E, n) a
            heat map of classes by epochs; (E, n, m) a heat map at each of some epochs. The pairs
            (E, 2) of a name such as ``y_vs_x`` are points: x, then y.
        class_names: In label order; they label the rows of a trace with one value per class.
    """
    names = [name for name in traces if not name.endswith(".epoch")]
    class_names = [escaping.drawn(name) for name in class_names]
    matrices = [name for name in names if traces[name].ndim == 3]
    single = [
        _panel(name, traces[name], traces[f"{name}.epoch"], class_names)
        for name in names
        if name not in matrices
    ]
    columns = 4 if matrices else min(len(single), 3)
    rows = [single[n : n + columns] for n in range(0, len(single), columns)]
    for name in matrices:
        rows.append(_snapshots(name, traces[name], traces[f"{name}.epoch"], columns, class_names))
    figure = Figure(figsize=(4.4 * columns, 3.4 * len(rows)), layout="constrained", dpi=110)
    places = figure.subplots(len(rows), columns, squeeze=False)
    for row, of_row in zip(rows, places, strict=True):
        for panel, axes in zip_longest(row, of_row):
            if panel is None:
                axes.set_axis_off()
                continue
            title, draw = panel
            axes.set_title(escaping.drawn(title))
            draw(axes)
    return figure


def _panel(name: str, values: Array, epochs: Array, class_names: Sequence[str]) -> Panel:
    title = name.replace("_", " ")
    if "_vs_" in name:
        return title, partial(_points, points=values, epochs=epochs, titles=title.split(" vs "))
    if values.ndim == 1:
        return title, partial(_line, values=values, epochs=epochs)
    return title, partial(_map, values=values, epochs=epochs, class_names=class_names)


def _snapshots(
    name: str, values: Array, epochs: Array, number: int, class_names: Sequence[str]
) -> list[Panel]:
    chosen = np.unique(np.linspace(0, len(values) - 1, number).astype(int))
    draw = partial(_matrix, most=np.nanmax(values[chosen]), class_names=class_names)
    title = name.replace("_", " ")
    return [(f"{title}, epoch {epochs[n]}", partial(draw, values=values[n])) for n in chosen]


def _points(axes: Axes, points: Array, epochs: Array, titles: Sequence[str]) -> None:
    drawn = axes.scatter(points[:, 0], points[:, 1], c=epochs, s=16)
    _of(axes).colorbar(drawn, ax=axes, label="epoch", ticks=MaxNLocator(integer=True))
    axes.axhline(0, color="0.8", zorder=0)
    axes.set(xlabel=titles[1], ylabel=titles[0])


def _line(axes: Axes, values: Array, epochs: Array) -> None:
    axes.plot(epochs, values, marker="." if len(epochs) < 30 else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch")


def _map(axes: Axes, values: Array, epochs: Array, class_names: Sequence[str]) -> None:
    between = (epochs[1:] + epochs[:-1]) / 2
    ends = np.concatenate([[epochs[0] - 0.5], between, [epochs[-1] + 0.5]])
    rows = np.arange(values.shape[1] + 1) - 0.5
    drawn = axes.pcolormesh(ends, rows, values.T, norm=_colours(values))
    _of(axes).colorbar(drawn, ax=axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylim=(rows[-1], rows[0]))
    _name(axes, values.shape[1], class_names)


def _matrix(axes: Axes, values: Array, most: float, class_names: Sequence[str]) -> None:
    drawn = axes.imshow(values, norm=Normalize(0, most))
    _of(axes).colorbar(drawn, ax=axes)
    axes.set(xlabel="second", ylabel="first")
    _name(axes, len(values), class_names)
    if len(values) == len(class_names) <= _NAMED:
        axes.set_xticks(range(len(values)), class_names, rotation=90)


def _colours(values: Array) -> Normalize:
    """Return a scale from 0; logarithmic for gains, whose head and tail are far apart."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0, 1)
    if low > 0 and high > max(1, 100 * low):
        return LogNorm(low, high)
    return Normalize(min(0, low), high)


def _name(axes: Axes, rows: int, class_names: Sequence[str]) -> None:
    if rows == len(class_names) <= _NAMED:
        axes.set_yticks(range(rows), class_names)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(ylabel=axes.get_ylabel() or ("class" if rows == len(class_names) else "group"))


def _of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure

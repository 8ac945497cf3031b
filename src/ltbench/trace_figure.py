"""A picture of what a method traced: multipliers, gains, shares, one value a class and epoch."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

_NAMED = 10  # classes that a legend has room for


def trace_figure(traces: Mapping[str, NDArray[Any]], class_names: Sequence[str]) -> Figure:
    """Draw the arrays of ``traces.npz``, a panel each.

    Args:
        traces: Of each name an array (E,), (E, n), or (E, n, m), and ``<name>.epoch`` (E,). Values
            by epoch are lines, one a class, from the first class (dark) to the last (bright); of
            matrices the last one is shown.
        class_names: In label order; named in the legend where a trace has one value a class.
    """
    names = [name for name in traces if not name.endswith(".epoch")]
    columns = min(len(names), 3)
    rows = ceil(len(names) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows), layout="constrained", dpi=120)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for name, axes in zip(names, panels, strict=False):
        values, epochs = traces[name], traces[f"{name}.epoch"]
        axes.set_title(name.replace("_", " "))
        if values.ndim == 3:
            figure.colorbar(axes.imshow(values[-1]), ax=axes)
            axes.set(xlabel=f"epoch {epochs[-1]}")
        else:
            _lines(axes, epochs, values.reshape(len(values), -1), class_names)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def _lines(
    axes: Axes, epochs: NDArray[Any], values: NDArray[Any], class_names: Sequence[str]
) -> None:
    count = values.shape[1]
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.95, count))
    labels = class_names if len(class_names) == count <= _NAMED else [None] * count
    for column, colour, label in zip(values.T, colours, labels, strict=True):
        axes.plot(epochs, column, color=colour, label=label, marker="." if len(epochs) < 3 else "")
    axes.set(xlabel="epoch")
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) and positive.max() > 100 * positive.min() and np.nanmax(values) > 1:
        axes.set_yscale("log")  # gains of head and tail are orders of magnitude apart
    if any(labels):
        axes.legend(fontsize="xx-small", ncols=2)

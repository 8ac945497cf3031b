"""Where the tail goes: which classes are mistaken for which."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ltbench import escaping
from ltbench.analysis.result import GROUP_COLOURS, Result, figure, percent
from ltbench.metrics.counts import Classes, by_frequency
from ltbench.records import Predictions

DRAWN = 30  # classes of the largest matrix that can be read
TOP = 3  # classes named for each


def analyse(predictions: Predictions, classes: Classes, split: str = "test") -> Result:
    """Count what is predicted as what: between groups, and class by class as a table.

    Args:
        predictions: The predictions.
        classes: The classes.
        split: Which split.
    """
    names = classes.names
    flows = group_flows(predictions, classes)
    table = class_table(predictions, classes)
    swallowed = _swallowers(predictions, classes)
    groups = list(classes.ranks)
    summary = [
        (
            f"{group} images predicted as",
            ", ".join(f"{to} {percent(share)}" for to, share in zip(groups, row, strict=True)),
        )
        for group, row in zip(groups, flows, strict=True)
        if not np.isnan(row).any()
    ]
    tail = table[(table["group"] == "tail") & (table["images"] > 0)]
    summary += [
        (f"class {row.name_} ({row.train_images} training images)", _lost(row))
        for row in tail.rename(columns={"name": "name_"}).head(20).itertuples()
    ]
    if swallowed:
        most = ", ".join(f"{names[c]} {count}" for c, count in swallowed[:5])
        summary.append(("classes that most tail images are mistaken for", most))
    figures = {"groups": _groups(flows, groups)}
    if len(names) <= DRAWN:
        figures = {"": _matrix(predictions, classes), **figures}
    if swallowed:
        figures["swallowers"] = _bars(classes, swallowed[:15])
    return Result(
        title=f"Where images go ({len(predictions.label)} {split} images)",
        summary=summary,
        values={
            "groups": groups,
            "flows": flows.tolist(),
            "swallowers": [{"class": c, "name": names[c], "images": n} for c, n in swallowed[:50]],
        },
        figures=figures,
        tables={"": table},
    )


def group_flows(predictions: Predictions, classes: Classes) -> NDArray[np.float64]:
    """Return the share of each group's images predicted as each group, (3, 3), rows the truth.

    A prediction of another class of the same group counts for that group. A group without images
    has NaN.
    """
    names = list(classes.ranks)
    group_of = classes.rank_of
    true, taken = group_of[predictions.label], group_of[predictions.prediction]
    counts = np.array([[np.sum((true == a) & (taken == b)) for b in names] for a in names])
    images = counts.sum(1, keepdims=True)
    return np.where(images > 0, counts / np.maximum(images, 1), np.nan)


def class_table(predictions: Predictions, classes: Classes) -> pd.DataFrame:
    """Tabulate each class, by decreasing training images: recall, and where the rest goes.

    Columns: ``class``, ``name``, ``group``, ``train_images``, ``images``, ``recall``,
    ``lost_to_head``, ``lost_to_mid``, ``lost_to_tail`` (shares of its images predicted as another
    class of that group), and ``taken_for_<k>`` with ``share_<k>`` for the most frequent errors.
    """
    number = len(classes)
    images = np.bincount(predictions.label, minlength=number)
    some = np.maximum(images, 1)
    wrong = predictions.label != predictions.prediction
    cells = predictions.label[wrong] * number + predictions.prediction[wrong]
    pairs, counts = np.unique(cells, return_counts=True)
    true, taken = pairs // number, pairs % number
    group_of, name_of = classes.rank_of, np.array(classes.names, dtype=object)
    hits = np.bincount(predictions.label[~wrong], minlength=number)
    columns = {
        "class": np.arange(number),
        "name": name_of,
        "group": group_of,
        "train_images": classes.counts,
        "images": images,
        "recall": np.where(images > 0, hits / some, np.nan),
    }
    for group in classes.ranks:
        within = group_of[taken] == group
        lost = np.bincount(true[within], weights=counts[within], minlength=number)
        columns[f"lost_to_{group}"] = lost / some
    order = np.lexsort((taken, -counts, true))
    true, taken, counts = true[order], taken[order], counts[order]
    place = np.arange(len(true)) - np.searchsorted(true, true)
    for k in range(TOP):
        at = place == k
        named, share = np.full(number, "", dtype=object), np.full(number, np.nan)
        named[true[at]] = name_of[taken[at]]
        share[true[at]] = counts[at] / some[true[at]]
        columns[f"taken_for_{k + 1}"], columns[f"share_{k + 1}"] = named, share
    by_count = by_frequency(classes.counts)
    return pd.DataFrame(columns).iloc[by_count].reset_index(drop=True)


def _swallowers(predictions: Predictions, classes: Classes) -> list[tuple[int, int]]:
    """Return the classes that tail images are mistaken for, and how many, most first."""
    tail = np.isin(predictions.label, classes.ranks["tail"])
    wrong = tail & (predictions.label != predictions.prediction)
    counts = np.bincount(predictions.prediction[wrong], minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return [(int(c), int(counts[c])) for c in order if counts[c]]


def _lost(row: Any) -> str:  # noqa: ANN401 - a named tuple of pandas
    others = [
        f"{getattr(row, f'taken_for_{k}')} {percent(getattr(row, f'share_{k}'))}"
        for k in range(1, TOP + 1)
        if getattr(row, f"taken_for_{k}")
    ]
    return f"recall {percent(row.recall)}" + (f"; taken for {', '.join(others)}" if others else "")


def _groups(flows: NDArray[np.float64], names: list[str]) -> Figure:
    """Draw the predictions for each group's images, one bar per group."""
    drawn, ((axes,),) = figure(width=5.6, height=2.3)
    left = np.zeros(len(names))
    for column, name in enumerate(names):
        width = 100 * np.nan_to_num(flows[:, column])
        bars = axes.barh(names, width, left=left, color=GROUP_COLOURS[name], label=f"as {name}")
        shown = [f"{w:.0f} %" if w >= 6 else "" for w in width]
        axes.bar_label(bars, shown, label_type="center", color="white", fontsize=9)
        left += width
    axes.invert_yaxis()
    axes.set(xlabel="share of the group's images (%)", ylabel="images of", xlim=(0, 100))
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=9)
    return drawn


def _matrix(predictions: Predictions, classes: Classes) -> Figure:
    """Draw the shares of each class's images, most frequent class first."""
    number = len(classes)
    counts = np.zeros((number, number))
    np.add.at(counts, (predictions.label, predictions.prediction), 1)
    order = by_frequency(classes.counts)
    shares = 100 * (counts / np.maximum(counts.sum(1, keepdims=True), 1))[np.ix_(order, order)]
    side = max(4.2, 1.6 + 0.44 * number)
    drawn, ((axes,),) = figure(width=side + 0.8, height=side)
    shown = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    for i, j in np.ndindex(shares.shape):
        if shares[i, j] > 0.5:
            dark = shares[i, j] < 50
            axes.text(
                j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=7,
                color="white" if dark else "black",
            )  # fmt: skip
    names = [escaping.drawn(f"{classes.names[c]} ({classes.counts[c]})") for c in order]
    axes.set_yticks(np.arange(number), names, fontsize=8)
    short = [escaping.drawn(classes.names[c]) for c in order]
    axes.set_xticks(np.arange(number), short, rotation=60, ha="right", fontsize=8)
    axes.set(xlabel="predicted as", ylabel="class (training images)")
    drawn.colorbar(shown, ax=axes, label="share of the class's images (%)", shrink=0.8)
    return drawn


def _bars(classes: Classes, swallowed: list[tuple[int, int]]) -> Figure:
    names = [escaping.drawn(f"{classes.names[c]} ({classes.counts[c]})") for c, _ in swallowed]
    group_of = classes.rank_of
    drawn, ((axes,),) = figure(width=5.6, height=1.0 + 0.25 * len(names))
    colours = [GROUP_COLOURS[group_of[c]] for c, _ in swallowed]
    axes.barh(names, [count for _, count in swallowed], color=colours)
    for group in dict.fromkeys(group_of[c] for c, _ in swallowed):
        axes.barh([names[0]], [0], color=GROUP_COLOURS[group], label=f"{group} class")
    axes.invert_yaxis()
    axes.set(xlabel="tail images mistaken for it", ylabel="class (training images)")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return drawn

"""Whether confidence is justified, by group of classes: Guo et al. 2017, arXiv 1706.04599."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ltbench.analysis.result import GREY, GROUP_COLOURS, Result, figure, percent
from ltbench.errors import UserError
from ltbench.metrics import counts
from ltbench.metrics.counts import Classes
from ltbench.records import Predictions

WAYS = {"true": "images of the group", "predicted": "images predicted as of the group"}


def analyse(
    predictions: Predictions, classes: Classes, split: str = "test", bins: int = 15
) -> Result:
    """Compare confidence and accuracy in bins, for all images and by group.

    Grouping by the true class shows on which images the network is overconfident; grouping by the
    prediction, which is all that a user sees, shows whether its confidence can be trusted.

    Args:
        predictions: Predictions with confidences.
        classes: The classes.
        split: Which split.
        bins: Number of equal bins, ((b - 1) / bins, b / bins].
    """
    if bins < 1:
        raise UserError(f"--bins {bins}: use at least 1.")
    assert predictions.confidence is not None
    group_of, hits = classes.rank_of, predictions.correct
    confidences = predictions.confidence.astype(np.float64)
    by: dict[str, dict[str, Any]] = {}
    for way, labels in (("true", predictions.label), ("predicted", predictions.prediction)):
        groups = group_of[labels]
        by[way] = {
            name: reliability_entry(confidences[rows], hits[rows], bins)
            for name, rows in (
                *((name, groups == name) for name in classes.ranks),
                ("all", np.ones(len(hits), dtype=bool)),
            )
        }
    summary = [
        (
            f"{name}, {WAYS[way]}" if name != "all" else "all images",
            f"ECE {percent(entry['ece'])}, confidence {percent(entry['confidence'])}, "
            f"accuracy {percent(entry['accuracy'])} ({entry['images']} images)",
        )
        for way, entries in by.items()
        for name, entry in entries.items()
        if entry["images"] and (name != "all" or way == "true")
    ]
    return Result(
        title=f"Reliability by group ({len(hits)} {split} images)",
        summary=summary,
        values={"bins": bins, "by": by},
        figures={"": _picture(by)},
    )


def reliability_entry(
    confidences: NDArray[np.float64], hits: NDArray[np.bool_], bins: int
) -> dict[str, Any]:
    """Return the expected calibration error, and accuracy and confidence per bin.

    The arguments are those of :func:`ltbench.metrics.counts.reliability`.

    Returns:
        ``ece``, ``confidence``, ``accuracy``, ``images``, and lists ``bin_images``,
        ``bin_confidence``, ``bin_accuracy``; None where there is no image.
    """
    images, right, sure = counts.reliability(confidences, hits, bins)
    total, some = int(images.sum()), np.maximum(images, 1)
    return {
        "ece": counts.calibration_error(images, right, sure) if total else None,
        "confidence": float(confidences.mean()) if total else None,
        "accuracy": float(hits.mean()) if total else None,
        "images": total,
        "bin_images": images.tolist(),
        "bin_confidence": [
            float(c) if n else None for c, n in zip(sure / some, images, strict=True)
        ],
        "bin_accuracy": [
            float(a) if n else None for a, n in zip(right / some, images, strict=True)
        ],
    }


def _picture(by: dict[str, dict[str, Any]]) -> Figure:
    names = list(by["true"])
    drawn, panels = figure(2, len(names), width=2.6, height=2.7, sharex=True, sharey=True)
    for row, (way, entries) in zip(panels, by.items(), strict=True):
        for axes, name in zip(row, names, strict=True):
            _diagram(axes, entries[name], GROUP_COLOURS.get(name, GREY))
            error = entries[name]["ece"]
            text = "no images" if error is None else f"ECE {100 * error:.1f} %"
            axes.set_title(f"{name}: {text}", fontsize=10)
            axes.set_xlabel("confidence")
        row[0].set_ylabel(f"accuracy,\n{WAYS[way].replace(' as', chr(10) + 'as')}", fontsize=9)
    panels[1][-1].set_visible(False)  # all images are the same either way
    return drawn


def _diagram(axes: Axes, entry: dict[str, Any], colour: str) -> None:
    """Draw the accuracy of each bin over its confidence, larger if it has more images."""
    full = [n > 0 for n in entry["bin_images"]]
    images = np.array(entry["bin_images"])[full]
    confidence, accuracy = (
        np.array([value for value in entry[name] if value is not None])
        for name in ("bin_confidence", "bin_accuracy")
    )
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8)
    axes.vlines(confidence, confidence, accuracy, color=colour, linewidth=1, alpha=0.5)
    size = 12 + 120 * images / max(1, images.max(initial=0))
    axes.scatter(confidence, accuracy, size, color=colour, alpha=0.8, linewidths=0, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")

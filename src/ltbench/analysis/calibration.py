"""Whether confidence is earned, by group of classes: Guo et al. 2017, arXiv 1706.04599."""

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

    Grouping by the truth shows on whose images the network is too sure; grouping by the prediction,
    which is all that a user sees, shows whether its confidence holds.

    Args:
        predictions: What was predicted, with confidences.
        classes: The classes.
        split: Whose images.
        bins: Of equal width, ((b - 1) / bins, b / bins].
    """
    if bins < 1:
        raise UserError(f"bins {bins}: give at least 1.")
    assert predictions.confidence is not None
    group_of, hits = classes.rank_of, predictions.correct
    confidences = predictions.confidence.astype(np.float64)
    found: dict[str, dict[str, Any]] = {}
    for way, labels in (("true", predictions.label), ("predicted", predictions.prediction)):
        groups = group_of[labels]
        found[way] = {
            name: reliability(confidences[chosen], hits[chosen], bins)
            for name, chosen in (
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
        for way, entries in found.items()
        for name, entry in entries.items()
        if entry["images"] and (name != "all" or way == "true")
    ]
    return Result(
        title=f"Reliability by group ({len(hits)} {split} images)",
        summary=summary,
        values={"bins": bins, "by": found},
        figures={"": _picture(found)},
    )


def reliability(
    confidences: NDArray[np.float64], hits: NDArray[np.bool_], bins: int
) -> dict[str, Any]:
    """Return the expected calibration error, and accuracy and confidence bin by bin.

    Args:
        confidences: (N,), in (0, 1].
        hits: Whether each was right, (N,).
        bins: Their number.

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


def _picture(found: dict[str, dict[str, Any]]) -> Figure:
    names = list(found["true"])
    drawn, panels = figure(2, len(names), width=2.6, height=2.7, sharex=True, sharey=True)
    for row, (way, entries) in zip(panels, found.items(), strict=True):
        for axes, name in zip(row, names, strict=True):
            _diagram(axes, entries[name], GROUP_COLOURS.get(name, GREY))
            error = entries[name]["ece"]
            told = "no images" if error is None else f"ECE {100 * error:.1f} %"
            axes.set_title(f"{name}: {told}", fontsize=10)
            axes.set_xlabel("confidence")
        row[0].set_ylabel(f"accuracy,\n{WAYS[way].replace(' as', chr(10) + 'as')}", fontsize=9)
    panels[1][-1].set_visible(False)  # all images are the same either way
    return drawn


def _diagram(axes: Axes, entry: dict[str, Any], colour: str) -> None:
    """Draw each bin's accuracy over its confidence against the diagonal, larger with its images."""
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

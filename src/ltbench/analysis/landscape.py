"""The loss of a class around the trained weights, along its strongest curvature and another way.

Both directions have length 1 in the space of all trained parameters, so that a radius is a radius
of SAM: Foret et al. 2021, arXiv 2010.01412. The pictures of Li et al. 2018, arXiv 1712.09913, scale
random directions filter by filter instead; the strongest curvature needs no such scale.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from ltbench import escaping, seeding
from ltbench.analysis.curvature import MeanLoss, class_loss
from ltbench.analysis.lanczos import Values, lanczos, rademacher
from ltbench.analysis.result import COLOURS, Others, Result, figure, shared
from ltbench.analysis.subject import Subject
from ltbench.errors import UserError

WAYS = {"random": "a random direction", "bottom": "the least curvature"}
LEAST = 1e-4  # of the highest loss: lower values are drawn alike


def analyse(
    subject: Subject,
    split: str = "train",
    classes: Sequence[str] = (),
    loss: Literal["ce", "run"] = "ce",
    images: int | None = 200,
    batch_size: int = 64,
    steps: int = 30,
    second: Literal["random", "bottom"] = "random",
    radius: float = 1.0,
    points: int = 15,
    beside: Others = MappingProxyType({}),
) -> Result:
    """Evaluate the loss of classes on a grid of two directions.

    Args:
        subject: The network.
        split: Which split.
        classes: Names or numbers; default: the most frequent and the rarest.
        loss: Plain cross-entropy (``ce``), or that of the run.
        images: Number of images per class at most.
        batch_size: Images at a time.
        steps: Lanczos steps towards the strongest curvature.
        second: The other direction: ``random``, or ``bottom``, that of the least curvature.
        radius: How far to go, in the norm of all trained parameters.
        points: Grid points along each direction.
        beside: Other networks to compare with; on the command line their run folders, or JSON files
            of this analysis.
    """
    if radius <= 0 or points < 3 or points % 2 == 0:
        raise UserError(
            f"--radius {radius}, --points {points}: use a radius above 0, and 3, 5, 7 ... points."
        )
    order = subject.by_frequency(split)
    labels = [subject.label_of(word) for word in classes] or [order[0], order[-1]]
    common = shared([subject.classes.names[label] for label in labels], beside)
    axis = np.linspace(-radius, radius, points)
    entries = {}
    for label in dict.fromkeys(labels):
        rows = subject.rows(split, label, images)
        target = class_loss(subject, split, rows, loss, batch_size)
        name = subject.classes.names[label]
        top, other, curvature = _directions(target, subject.device, steps, second)
        grid = _upwards(plane(target, top, other, axis, f"class {name}"))
        entries[name] = {
            "train_images": int(subject.classes.counts[label]),
            "images": len(rows),
            **curvature,
            "axis": axis.tolist(),
            "loss": grid.tolist(),
        }
    runs = {
        run: {name: classes[name] for name in common}
        for run, classes in {subject.output.name: entries, **beside}.items()
    }
    summary = []
    for name, entry in entries.items():
        centre = entry["loss"][points // 2][points // 2]
        ends = max(entry["loss"][0][points // 2], entry["loss"][-1][points // 2])
        summary.append(
            (
                f"class {name} ({entry['train_images']} training images)",
                f"loss {centre:.3g}; {ends:.3g} at {radius:g} along the strongest curvature "
                f"(λ {entry['lambda_first']:.3g}), λ along the other {entry['lambda_second']:.3g}",
            )
        )
    title = f"Loss around the weights along the strongest curvature and {WAYS[second]}"
    return Result(
        title=f"{title} ({split} images)",
        summary=summary,
        values={"second": second, "classes": entries},
        figures={"": maps(runs, second), "cuts": cuts(runs, second)},
    )


def _directions(
    target: MeanLoss, device: torch.device, steps: int, second: str
) -> tuple[Tensor, Tensor, dict[str, float]]:
    start, other = (
        rademacher(target.size, seeding.run_seed(), "landscape", use).to(device)
        for use in ("start", "random")
    )
    (krylov,) = lanczos(target.products, start[None], steps)
    top = krylov.vector(-1)
    other = krylov.vector(0) if second == "bottom" else other - (other @ top) * top
    other = other / other.norm()
    along = float(other @ target.products(other[None])[0])
    return top, other, {"lambda_first": float(krylov.nodes[-1]), "lambda_second": along}


def plane(target: MeanLoss, first: Tensor, second: Tensor, axis: Values, words: str = "") -> Values:
    """Evaluate a loss at w + a first + b second, and restore its parameters w.

    Both directions are (P,); a and b take the values of ``axis``, (n,). Returns (n, n), rows by a.
    """
    before = [p.detach().clone() for p in target.parameters]
    grid = np.zeros((len(axis), len(axis)))
    try:
        places = [(i, j) for i in range(len(axis)) for j in range(len(axis))]
        for i, j in track(places, words, transient=True):
            target.move(float(axis[i]) * first + float(axis[j]) * second)
            grid[i, j] = target.value()
            _restore(target, before)
    finally:
        _restore(target, before)
    return grid


def _upwards(grid: Values) -> Values:
    """Flip both directions, whose signs are arbitrary, to where the loss is larger."""
    middle = len(grid) // 2
    if grid[0, middle] > grid[-1, middle]:
        grid = grid[::-1]
    return grid[:, ::-1] if grid[middle, 0] > grid[middle, -1] else grid


@torch.no_grad()
def _restore(target: MeanLoss, before: Sequence[Tensor]) -> None:
    for parameter, value in zip(target.parameters, before, strict=True):
        parameter.copy_(value)


def maps(runs: Mapping[str, Mapping[str, Any]], second: str) -> Figure:
    """Draw contours of the loss, which spans decades, on a logarithmic scale.

    A row is a run, a column a class; the runs of a class share their colours. ``runs`` holds, by
    run and by class, the same in each: ``axis`` and ``loss``.
    """
    names = list(next(iter(runs.values())))
    drawn, panels = figure(len(runs), len(names), width=4.2, height=3.4)
    for column, name in enumerate(names):
        entries = [classes[name] for classes in runs.values()]
        losses = [np.ma.masked_invalid(np.array(e["loss"], float)) for e in entries]  # may overflow
        finite = np.concatenate([loss.compressed() for loss in losses])
        highest = finite.max(initial=0.0) or 1.0
        lowest = max(finite.min(initial=highest), highest * LEAST)
        levels = np.geomspace(lowest, max(highest, lowest * 1.1), 16)
        for row, (run, entry, loss) in enumerate(zip(runs, entries, losses, strict=True)):
            axes = panels[row][column]
            where = entry["axis"], entry["axis"], np.ma.maximum(loss, lowest)
            surface = axes.contourf(*where, levels, norm=LogNorm())
            axes.contour(*where, levels, colors="white", linewidths=0.3)
            axes.plot(0, 0, "+", color=COLOURS[1], markersize=9, markeredgewidth=2)
            drawn.colorbar(surface, ax=axes, label="loss", format="%.3g")
            title = f"class {name} ({entry['train_images']} training images)"
            title = f"{run}\n{title}" if len(runs) > 1 else title
            axes.set_title(escaping.drawn(title), fontsize=10)
            axes.set_xlabel(f"along {WAYS[second]}", fontsize=9)
            axes.set_ylabel("along the strongest curvature", fontsize=9)
    return drawn


def cuts(runs: Mapping[str, Mapping[str, Any]], second: str) -> Figure:
    """Draw the loss along each direction: one column per class, one colour per run."""
    names = list(next(iter(runs.values())))
    drawn, (panels,) = figure(1, len(names), width=4.2, height=3.2 + 0.25 * len(runs))
    for axes, name in zip(panels, names, strict=True):
        for colour, (run, classes) in zip(COLOURS * len(runs), runs.items(), strict=False):
            entry = classes[name]
            loss, middle = np.array(entry["loss"], float), len(entry["axis"]) // 2
            label = escaping.drawn(f"{run}, ") if len(runs) > 1 else ""
            axes.plot(
                entry["axis"], loss[:, middle], color=colour,
                label=f"{label}strongest curvature (λ {entry['lambda_first']:.3g})",
            )  # fmt: skip
            axes.plot(
                entry["axis"], loss[middle], color=colour, linestyle="--",
                label=f"{label}{second} (λ {entry['lambda_second']:.3g})",
            )  # fmt: skip
        axes.set(xlabel="distance from the weights", title=escaping.drawn(f"class {name}"))
        axes.set_yscale("log")
        axes.set_ylim(bottom=LEAST * axes.get_ylim()[1])
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panels[0].set_ylabel("loss")
    return drawn

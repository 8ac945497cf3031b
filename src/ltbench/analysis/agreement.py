"""What a distilled student learns from its teacher, and how far its two tokens differ.

Definitions follow Rangwani et al. 2024, DeiT-LT, arXiv 2404.02900, as far as the paper has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ltbench import escaping, seeding, untrusted
from ltbench.analysis.result import BLUE, GREEN, GREY, ORANGE, Result, figure, percent
from ltbench.analysis.subject import Subject
from ltbench.errors import UserError
from ltbench.methods.deit_lt.distillation import resize
from ltbench.methods.deit_lt.method import DeiTLT
from ltbench.metrics.counts import by_frequency
from ltbench.models import penultimate
from ltbench.records import RunFolder

HEADS = ("cls", "dist", "average")


def analyse(
    subject: Subject, split: str = "train", images: int | None = 5000, batch_size: int = 128
) -> Result:
    """Compare student and teacher on clean images and on mixed ones.

    Images are taken in a random order, since each is mixed with another of its batch, by the
    mixing of the run.

    Args:
        subject: A run of DeiT-LT with a teacher.
        split: Which split.
        images: Number of images at most.
        batch_size: Images at a time.

    Raises:
        UserError: The method has no teacher.
    """
    model = subject.model
    if not isinstance(model, DeiTLT):
        raise UserError(f"{type(model).__name__} has no teacher and student: choose a DeiT-LT run.")
    model.load_teacher()
    assert model.teacher is not None
    model.teacher.to(subject.device)
    draw = np.random.default_rng(seeding.derive(seeding.run_seed(), "agreement"))
    rows = draw.permutation(subject.rows(split, limit=images))
    kinds = {"clean": _Tally(subject), "mixed": _Tally(subject)}
    if model.mixing.mixer is None:
        del kinds["mixed"]
    for number, batch in enumerate(subject.batches(split, rows, batch_size)):
        seen = resize(batch["image"], model.size, antialias=True)
        labels = batch["label"]
        kinds["clean"].add(model, seen, F.one_hot(labels, model.num_classes), labels, labels)
        if "mixed" in kinds:
            seed = seeding.derive(seeding.run_seed(), "agreement", number)
            targets = model.mixing(seen, labels, seed)
            kinds["mixed"].add(model, seen, targets, labels, partners(labels))
    results = {kind: tally.result() for kind, tally in kinds.items()}
    curve = _diversity(subject)
    summary = []
    for kind, values in results.items():
        shares = ", ".join(f"{head} {percent(values['agreement'][head]['all'])}" for head in HEADS)
        bits = ", ".join(f"{name} {value:.2f}" for name, value in values["entropy"].items())
        summary += [
            (f"agreement with the teacher, {kind} images", shares),
            (f"teacher's error, {kind} images", percent(values["teacher_error"])),
            (f"entropy in nats, {kind} images", bits),
            (f"diversity 1 - cos(CLS, DIST), {kind} images", f"{values['diversity']:.3f}"),
        ]
    pictures = {"": _bars(results), "labels": _labels(results, subject)}
    if len(curve["epoch"]) > 1:
        pictures["diversity"] = _curve(curve)
    return Result(
        title=f"Student and teacher ({len(rows)} {split} images)",
        summary=summary,
        values={**results, "diversity_by_epoch": curve, "images": len(rows)},
        figures=pictures,
    )


class _Tally:
    """Sums over images."""

    def __init__(self, subject: Subject) -> None:
        classes = subject.model.num_classes
        self.groups = subject.classes.ranks
        self.group_of = torch.zeros(classes, dtype=torch.long)
        for number, labels in enumerate(self.groups.values()):
            self.group_of[torch.from_numpy(labels)] = number
        self.agreed = torch.zeros(len(HEADS), len(self.groups), dtype=torch.float64)
        self.images = torch.zeros(len(self.groups), dtype=torch.float64)
        self.taught, self.true = torch.zeros(2, classes, dtype=torch.float64)
        self.entropies = torch.zeros(3, dtype=torch.float64)
        self.errors = self.cosines = 0.0

    @torch.no_grad()
    def add(
        self, model: DeiTLT, images: Tensor, targets: Tensor, labels: Tensor, partners: Tensor
    ) -> None:
        """Count a batch; an image counts in the group of its largest share in targets, (B, C)."""
        assert model.teacher is not None
        tokens = penultimate.head_features(model.net, images)
        cls, dist = penultimate.head_logits(model.net, tokens).values()
        answers = model.teacher(images) * model.teacher_scale
        teacher = answers.argmax(1)
        group = self.group_of[targets.argmax(1).cpu()]
        for row, scores in zip(self.agreed, (cls, dist, (cls + dist) / 2), strict=True):
            row.index_add_(0, group, (scores.argmax(1) == teacher).double().cpu())
        self.images += torch.bincount(group, minlength=len(self.images))
        self.errors += float(((teacher != labels) & (teacher != partners)).sum())
        self.taught += torch.bincount(teacher.cpu(), minlength=len(self.taught))
        self.true += torch.bincount(labels.cpu(), minlength=len(self.true))
        for i, scores in enumerate((answers, cls, dist)):
            self.entropies[i] += float(entropy(scores).double().sum())
        self.cosines += float(F.cosine_similarity(tokens["cls"], tokens["dist"], eps=1e-6).sum())

    def result(self) -> dict[str, Any]:
        count = float(self.images.sum())
        agreement = {}
        for head, row in zip(HEADS, self.agreed, strict=True):
            by_group = (row / self.images).tolist()
            agreement[head] = {
                "all": float(row.sum()) / count,
                **dict(zip(self.groups, by_group, strict=True)),
            }
        means = (self.entropies / count).tolist()
        return {
            "agreement": agreement,
            "teacher_error": self.errors / count,
            "entropy": dict(zip(("teacher", "cls", "dist"), means, strict=True)),
            "diversity": 1 - self.cosines / count,
            "teacher_labels": (self.taught / count).tolist(),
            "label_prior": (self.true / count).tolist(),
        }


def entropy(logits: Tensor) -> Tensor:
    """Return -sum_c p_c log p_c of each row's softmax p, (B,), in nats."""
    logs = logits.float().log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def partners(labels: Tensor) -> Tensor:
    """Return the labels of the images that a batch is mixed with; an odd last one stays."""
    even = len(labels) // 2 * 2
    return torch.cat([labels[:even].flip(0), labels[even:]])


def _diversity(subject: Subject) -> dict[str, list[float]]:
    """Return 1 - cosine of the two tokens on training batches, epoch by epoch, from the run."""
    path = RunFolder(subject.output.place.folder).curves
    try:
        with untrusted.open_file(path, untrusted.MOST_TEXT) as file:
            table = pd.read_csv(file)
    except FileNotFoundError:
        table = pd.DataFrame()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as curves: {error}") from error
    if not {"epoch", "train/cosine"} <= set(table):
        return {"epoch": [], "diversity": []}
    rows = table[["epoch", "train/cosine"]].apply(pd.to_numeric, errors="coerce")
    rows = rows[np.isfinite(rows).all(axis=1)]
    return {
        "epoch": rows["epoch"].tolist(),
        "diversity": (1 - rows["train/cosine"]).tolist(),
    }


def _bars(results: Mapping[str, Any]) -> Figure:
    drawn, (panels,) = figure(1, len(results), width=4.4, height=3.2, sharey=True)
    for axes, (kind, values) in zip(panels, results.items(), strict=True):
        groups = list(values["agreement"]["cls"])
        places = np.arange(len(groups))
        for offset, head, colour in zip(
            (-0.27, 0, 0.27), HEADS, (BLUE, ORANGE, GREEN), strict=True
        ):
            heights = [100 * values["agreement"][head][group] for group in groups]
            axes.bar(places + offset, heights, 0.25, color=colour, label=head)
        axes.set_xticks(places, groups)
        axes.set(title=f"{kind} images", ylim=(0, 100))
    panels[0].set_ylabel("agreement with the teacher (%)")
    panels[-1].legend(frameon=False, fontsize=8)
    return drawn


def _labels(results: Mapping[str, Any], subject: Subject) -> Figure:
    """Draw how often the teacher predicts each class, by decreasing training images."""
    order = by_frequency(subject.classes.counts)
    drawn, ((axes,),) = figure(width=6, height=3.4)
    prior: NDArray[np.float64] = np.array(results["clean"]["label_prior"])[order]
    axes.step(np.arange(len(order)), 100 * prior, where="mid", color=GREY, label="true labels")
    for (kind, values), colour in zip(results.items(), (BLUE, ORANGE), strict=False):
        shares = 100 * np.array(values["teacher_labels"])[order]
        marker = "o" if len(order) <= 50 else ""
        axes.plot(
            np.arange(len(order)), shares, marker=marker, markersize=4, color=colour,
            label=f"teacher, {kind} images",
        )  # fmt: skip
    if len(order) <= 20:
        names = [escaping.drawn(subject.classes.names[c]) for c in order]
        axes.set_xticks(np.arange(len(order)), names, rotation=45, ha="right")
    axes.set(xlabel="class, by decreasing training images", ylabel="share of the images (%)")
    axes.legend(frameon=False, fontsize=8)
    return drawn


def _curve(curve: Mapping[str, Sequence[float]]) -> Figure:
    drawn, ((axes,),) = figure(width=5.4, height=3.2)
    axes.plot(curve["epoch"], curve["diversity"], color=BLUE)
    axes.set(xlabel="epoch", ylabel="1 - cos(CLS, DIST), training batches")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.1 * max(curve["diversity"]))
    return drawn

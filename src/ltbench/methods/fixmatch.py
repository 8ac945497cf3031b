"""FixMatch: confident predictions on a weak view are the labels of a strong view."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.errors import UserError
from ltbench.losses import bind_loss
from ltbench.methods.base import Paper, always
from ltbench.methods.optimised import OptimisedModule
from ltbench.optim.schedules import LRSchedule, SlowCosine
from ltbench.optim.step import Loss, Step


def confident(logits: Tensor, cutoff: float) -> Tensor:
    """Return which samples (n,) have a largest probability of at least ``cutoff``, a bool each."""
    return logits.softmax(1, dtype=torch.float32).amax(1) >= cutoff


def pseudo_labels(logits: Tensor, temperature: float | None = None) -> Tensor:
    """Return what the weak view predicts.

    Args:
        logits: (n, C) of the weak view.
        temperature: T > 0 of soft labels softmax(s / T), which sharpens below 1 (UDA, arXiv
            1904.12848); None: hard labels.

    Returns:
        (n,) int64 labels, the first of equals, or (n, C) float32 probabilities.
    """
    if temperature is None:
        return logits.argmax(1)
    return (logits / temperature).softmax(1, dtype=torch.float32)


class FixMatch(OptimisedModule):
    """Train on labelled images, and on unlabelled ones whose weak view is predicted confidently.

    The loss is that of the labelled images plus ``lambda_u`` times the cross-entropy of the strong
    view with the pseudo-label, averaged over all unlabelled images, where those that are not kept
    count 0. All images go through the network at once, so that batch norm sees them together.
    FixMatch (LA) is ``loss: logit_adjusted_loss``; UDA (arXiv 1904.12848) is a ``temperature``.

    Logged: the share of pseudo-labels kept and, by predicted class, ``kept_share`` and, where the
    data opens the true labels, ``kept_accuracy``; for the record alone, never for training.

    Args:
        loss: Loss of the labelled images, a function of :mod:`ltbench.losses`.
        loss_args: Its constants.
        lambda_u: Weight of the unlabelled images, at least 0.
        p_cutoff: Least confidence of a pseudo-label that is kept, in [0, 1].
        temperature: Of soft pseudo-labels, above 0; default: hard ones.
        backbone: See :class:`~ltbench.methods.optimised.OptimisedModule`, like all that follow.
        optimizer: The recipe's by default.
        decay_norms: The recipe has no weight decay on normalisation layers.
        lr_schedule: ``SlowCosine`` by default.
        ema_decay: Averaged weights are evaluated; batch norm's statistics are copied.
        **kwargs: The rest of :class:`~ltbench.methods.optimised.OptimisedModule`.
    """

    paper = Paper(
        title="FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
        venue="NeurIPS 2020",
        arxiv="2001.07685",
        equations={
            "pseudo-labels and threshold (eq. 4)": "ltbench.methods.fixmatch.confident",
            "soft pseudo-labels (UDA, 1904.12848)": "ltbench.methods.fixmatch.pseudo_labels",
            "labelled loss with logit adjustment": "ltbench.losses.logit_adjusted_loss",
            "learning rate (section 2.4)": "ltbench.optim.schedules.SlowCosine",
        },
        deviations={
            "Strong views are those of the long-tail code bases (2304.14738, 2403.18301): three "
            "operations, always applied, then cutout; labelled images are no unlabelled ones.": (
                lambda run: not run.data.texts
            ),
            "The last epoch is reported; the released code picks the best one on test.": always,
            "Images are drawn independently, with replacement; the released code goes through "
            "permutations.": always,
            "Biases, not only batch norm, are free of weight decay.": always,
            "CIFAR is normalised as in its long-tail recipes, by deviations of 0.20, not 0.25.": (
                lambda run: not run.data.texts
            ),
            "UDA's annealing of the training signal is left out.": (
                lambda run: run.temperature is not None
            ),
        },
    )
    average_buffers = False

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        loss: str = "cross_entropy_loss",
        loss_args: dict[str, float] | None = None,
        lambda_u: float = 1.0,
        p_cutoff: float = 0.95,
        temperature: float | None = None,
        backbone: str = "wrn_28_2",
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.03, momentum=0.9, weight_decay=5e-4, nesterov=True
        ),
        decay_norms: bool = False,
        lr_schedule: LRSchedule | None = None,
        ema_decay: float | None = 0.999,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            num_classes,
            in_chans,
            backbone=backbone,
            optimizer=optimizer,
            decay_norms=decay_norms,
            lr_schedule=lr_schedule or SlowCosine(),
            ema_decay=ema_decay,
            **kwargs,
        )
        if not (0 <= lambda_u < math.inf and 0 <= p_cutoff <= 1):
            raise UserError("lambda_u must be finite and at least 0, and p_cutoff in [0, 1].")
        if temperature is not None and not temperature > 0:
            raise UserError(f"temperature is {temperature}; it must be above 0, or null.")
        self.loss = bind_loss(loss, loss_args or {})
        self.lambda_u = lambda_u
        self.p_cutoff = p_cutoff
        self.temperature = temperature
        self.truth: Tensor | None = None
        # Rows: pseudo-labels per class in this epoch, those kept, those kept and right.
        # No buffer: DDP would give every rank those of the first.
        self.pseudo_counts = torch.zeros(3, num_classes, dtype=torch.long)

    @property
    @override
    def data(self) -> SemiSupervisedDataModule:
        data = super().data
        if not isinstance(data, SemiSupervisedDataModule):
            raise UserError(
                f"{type(self).__name__} needs unlabelled images: set data.class_path to "
                "SemiSupervisedDataModule."
            )
        return data

    @override
    def on_train_start(self) -> None:
        # For the statistics alone.
        if self.data.oracle:
            self.truth = self.data.oracle_labels().to(self.device)

    @override
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.pseudo_counts = torch.zeros_like(self.pseudo_counts, device=self.device)

    @override
    def warnings(self, logged: Mapping[str, Tensor]) -> dict[str, str]:
        if logged.get("train/kept_share", torch.ones(())):
            return {}
        return {
            "pseudo-labels": "every pseudo-label was rejected, so the unlabelled images are not "
            "used. Lower the threshold, or train for longer."
        }

    def labelled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of labelled images from their logits (B, C) and labels (B,)."""
        return self.loss(logits, labels, self.class_counts)

    def consistency_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss (n,) of strong views from their logits and pseudo-labels."""
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return which pseudo-labels (n,) are kept, from the logits of the weak views."""
        return confident(logits, self.p_cutoff)

    @override
    def loss_of(self, batch: dict[str, Any]) -> Loss:
        images, labels = batch["image"], batch["label"]
        if "unlabelled" not in batch:
            return self.labelled_loss(self(images), labels)
        hidden: dict[str, Tensor] = batch["unlabelled"]
        logits = self(torch.cat([images, hidden["weak"], hidden["strong"]]))
        labelled, weak, strong = logits.split([len(images), *2 * [len(hidden["weak"])]])
        with torch.no_grad():
            targets = pseudo_labels(weak, self.temperature)
            keep = self.keep(weak, targets)
        of_labelled = self.labelled_loss(labelled, labels)
        of_unlabelled = (self.consistency_losses(strong, targets) * keep).mean()
        return of_labelled + self.lambda_u * of_unlabelled, {
            "labelled_loss": of_labelled,
            "unlabelled_loss": of_unlabelled,
            "kept_share": keep.float().mean(),
            "pseudo_label": weak.argmax(1),
            "kept": keep,
        }

    @override
    def after_step(self, step: Step) -> None:
        if "kept" not in step.statistics:
            return
        labels, keep = step.statistics["pseudo_label"], step.statistics["kept"]
        rows = [torch.ones_like(labels), keep.long()]
        if self.truth is not None:
            right = labels == self.truth[step.batch["unlabelled"]["index"]]
            rows.append((keep & right).long())
        self.pseudo_counts[: len(rows)].index_add_(1, labels, torch.stack(rows))
        if self.trainer.is_last_batch:
            drawn, kept, right = self.summed(self.pseudo_counts).double()
            self.traces["kept_share"] = kept / drawn
            if self.truth is not None:
                self.traces["kept_accuracy"] = right / kept
                accuracy = right.sum() / kept.sum()
                self.log(
                    "train/kept_accuracy", accuracy, on_step=False, on_epoch=True, batch_size=1
                )

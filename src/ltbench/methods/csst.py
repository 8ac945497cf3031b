"""CSST: self-training for a metric of the confusion matrix, such as min recall, not accuracy."""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.methods.base import Paper, always
from ltbench.methods.fixmatch import FixMatch
from ltbench.methods.parts.held_out import HeldOut
from ltbench.objectives import Ascent, Covered, LeastRecall, decompose, rates

PUBLISHED_BUDGET = 57.6
"""Step size 0.1 times the 576 updates of the released code's 2^20 steps."""


def hybrid_loss(logits: Tensor, targets: Tensor, gain: Tensor) -> Tensor:
    """Cost-sensitive loss of each sample, -sum_j (M^T t)_j log softmax(z - log diag D)_j.

    G = M D, with D the diagonal of G. A diagonal G gives the logit-adjusted cross-entropy. The
    best scores have softmax(z) = norm(G^T p(y|x)): predictions are arg max z, unadjusted.
    Narasimhan and Menon 2021; CSST, arXiv 2304.14738, equation 3.

    Args:
        logits: z, (B, C).
        targets: Labels (B,), or probabilities t (B, C).
        gain: G, (C, C), its diagonal positive; any multiple gives the same loss.

    Returns:
        (B,) losses, float32 or better.
    """
    logits = _wide(logits)
    mixing, diagonal = decompose(gain)
    weights = _transposed(mixing, targets).to(logits)
    return -(weights * (logits - diagonal.log().to(logits)).log_softmax(1)).sum(1)


def weighted_target(targets: Tensor, gain: Tensor) -> Tensor:
    """Return what the strong view is pulled to, norm(G^T t) (B, C): the weights of equation 6.

    The arguments are those of :func:`hybrid_loss`.
    """
    gains = _transposed(gain, targets)
    return gains / gains.sum(1, keepdim=True)


def target_divergence(logits: Tensor, targets: Tensor, gain: Tensor) -> Tensor:
    """Return KL(norm(G^T t) || softmax(z)) of each sample, (B,): CSST, equation 7.

    Small where the weak view already predicts what the gains ask for. For a diagonal G and hard
    labels it is -log max p, so that a threshold on it is FixMatch's on the confidence. The
    arguments are those of :func:`hybrid_loss`, z being the weak view's.
    """
    target = weighted_target(targets, gain).to(_wide(logits))
    prediction = _wide(logits).softmax(1)
    return (target * ((target + 1e-7).log() - (prediction + 1e-7).log())).sum(1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _transposed(matrix: Tensor, targets: Tensor) -> Tensor:
    """Return A^T t of each sample, (B, C), in the precision of the matrix A (C, C)."""
    if not targets.is_floating_point():
        return matrix[targets]
    with torch.autocast(targets.device.type, enabled=False):
        return targets.to(matrix) @ matrix


class CSST(FixMatch):
    """FixMatch with the cost-sensitive losses of a gain matrix that follows the held-out set.

    Every ``update_interval`` steps the averaged network is evaluated on the validation split, in
    one pass without augmentation. Its confusion matrix moves the multipliers of the objective, and
    they define the gain matrix G. Labelled images get the hybrid loss of G; an unlabelled one is
    kept if its weak view is close to norm(G^T t) for its pseudo-label t, and its strong view gets
    the hybrid loss of t. Without unlabelled images (``data.mu: 0``) this is cost-sensitive
    learning (CSL), on labelled images alone.

    The validation split is labelled data, which other methods use to choose an epoch alone.

    Traces: the multipliers ``lambda``, ``gain_diagonal``, ``held_out_recall`` and
    ``held_out_coverage`` of the last update of an epoch, and FixMatch's.

    Args:
        objective: A name in :data:`ltbench.objectives.OBJECTIVES`, or the import path of the user's
            own; those that are not linear are linearised at the current recalls.
        coverage_target: Least coverage as a share of 1 / C, for objectives with one.
        update_interval: Steps between updates of the multipliers; or pairs (fraction of training,
            steps) in order, starting at 0: ``[[0, 10000], [0.5, 1000]]``.
        omega: Step size of an update; default: ``budget`` over the number of updates.
        budget: What multipliers can do in a run is ``omega`` times the number of updates. The
            default is that of the released code, so that a shorter run moves them as far.
        lambda_init: First multiplier of each coverage constraint, at least 0; default: 1 / C.
        threshold: What keeps a pseudo-label: the divergence (``kl``), or FixMatch's ``confidence``.
        kl_tau: Largest divergence that is kept.
        **kwargs: The rest of :class:`~ltbench.methods.fixmatch.FixMatch`.
    """

    paper = Paper(
        title="Cost-Sensitive Self-Training for Optimizing Non-Decomposable Metrics",
        venue="NeurIPS 2022",
        arxiv="2304.14738",
        equations={
            "hybrid loss (eq. 3)": "ltbench.methods.csst.hybrid_loss",
            "weighted consistency (eq. 6)": "ltbench.methods.csst.weighted_target",
            "KL threshold (eq. 7)": "ltbench.methods.csst.target_divergence",
            "multipliers (section 4)": "ltbench.objectives.Ascent",
            "gain matrices (section 4)": "ltbench.objectives.Objective.gain",
        },
        deviations={
            "The held-out set is evaluated without augmentation; the released code augments it.": (
                always
            ),
            "No multiplier is updated before the first step.": always,
            "The last epoch is reported; the released code picks the best one on test.": always,
            "Images are drawn independently, with replacement; the released code goes through "
            "permutations.": always,
            "Biases, not only batch norm, are free of weight decay.": always,
            "CIFAR is normalised as in its long-tail recipes, by deviations of 0.20, not 0.25.": (
                always
            ),
            "Multipliers of coverage constraints are kept between updates; the last released code "
            "starts each update from 1/C, which leaves the constraints without effect.": (
                lambda run: isinstance(run.held_out.objective, Covered)
            ),
            "Gains of head and tail are divided by the size of the group, as in the paper; the "
            "released code leaves that out.": lambda run: run.held_out.objective.grouped,
            "The objective is not one of the paper's, but linearised as the paper's are.": (
                lambda run: not run.held_out.objective.linear
            ),
            "The run is shorter than update_interval: no multiplier was updated.": (
                lambda run: not run.due
            ),
        },
    )

    multipliers: Tensor
    gain: Tensor

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        objective: str = "min_recall",
        coverage_target: float = 0.95,
        update_interval: int | list[tuple[float, int]] = 1000,
        omega: float | None = None,
        budget: float = PUBLISHED_BUDGET,
        lambda_init: float | None = None,
        threshold: Literal["kl", "confidence"] = "kl",
        kl_tau: float = 0.05,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        # The labelled loss is the hybrid one, so that FixMatch's choice of a loss is none here.
        super().__init__(num_classes, in_chans, loss="cross_entropy_loss", loss_args=None, **kwargs)
        steps = [budget] if omega is None else [budget, omega]
        if not (all(0 < step < math.inf for step in steps) and kl_tau >= 0):
            raise UserError("omega and budget must be finite and above 0, and kl_tau at least 0.")
        self.held_out = HeldOut(objective, num_classes, coverage_target)
        self.monitor = self.held_out.monitor
        self.update_interval = update_interval
        self.due: frozenset[int] = frozenset()
        self.omega = omega
        self.budget = budget
        self.threshold = threshold
        self.kl_tau = kl_tau
        first = self.held_out.objective.initial.clone()
        if lambda_init is not None:
            least = isinstance(self.held_out.objective, LeastRecall)
            if least or not 0 <= lambda_init < math.inf:
                raise UserError(
                    "lambda_init must be finite, at least 0, and for coverage constraints only: "
                    f"the multipliers of {objective} sum to 1."
                )
            first.fill_(lambda_init)
        self.register_buffer("multipliers", first)
        self.register_buffer("gain", torch.eye(num_classes, dtype=torch.float64))
        update_steps(update_interval, 1)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.held_out.setup(self.data, self.class_counts)
            self._set_gain(self.prior.diag(), self.multipliers.cpu())

    @property
    def prior(self) -> Tensor:
        """Class prior of the labelled images, (C,) float64 on the CPU."""
        counts = self.class_counts.double().cpu()
        return counts / counts.sum()

    @override
    def on_fit_start(self) -> None:
        # Also where a finished run goes on.
        length = int(self.trainer.estimated_stepping_batches)
        self.due = frozenset(update_steps(self.update_interval, length))
        self.rule = Ascent(self.omega or self.budget / max(len(self.due), 1))

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.trainer.global_step in self.due:
            self.update_multipliers()

    def update_multipliers(self) -> None:
        """Evaluate the averaged network on the held-out set; move multipliers and gains."""
        counts = self.confusion(self.evaluated).cpu()
        look = self.held_out.look(counts, self.multipliers.cpu(), self.rule)
        self.multipliers.copy_(look.multipliers)
        self._set_gain(look.smoothed, look.multipliers)
        recall, coverage = rates(look.joint)
        self.traces |= {
            "lambda": look.multipliers,
            "gain_diagonal": self.gain.diagonal(),
            "held_out_recall": recall,
            "held_out_coverage": coverage,
        }
        for name, value in look.report.items():
            self.log(f"train/held_out_{name}", value, on_step=False, on_epoch=True, batch_size=1)

    def _set_gain(self, joint: Tensor, multipliers: Tensor) -> None:
        self.gain.copy_(self.held_out.objective.gain(self.prior, joint, multipliers))

    @override
    def labelled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return hybrid_loss(logits, labels, self.gain).mean()

    @override
    def consistency_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return hybrid_loss(logits, targets, self.gain)

    @override
    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.threshold == "confidence":
            return super().keep(logits, targets)
        return target_divergence(logits, targets, self.gain) <= self.kl_tau


def update_steps(interval: int | list[tuple[float, int]], steps: int) -> list[int]:
    """Return the steps before which multipliers are updated; never the first.

    Args:
        interval: Steps between updates, or pairs (fraction of training, steps), starting at 0.
        steps: Length of the whole training.

    Raises:
        UserError: An interval is below 1, or fractions do not rise from 0 to at most 1.
    """
    pairs = interval if isinstance(interval, list) else [(0.0, interval)]
    fractions = [fraction for fraction, _ in pairs]
    if (
        fractions[:1] != [0]
        or fractions != sorted(set(fractions))
        or fractions[-1] > 1
        or min(every for _, every in pairs) < 1
    ):
        raise UserError(
            f"update_interval {interval}: give a number of steps, at least 1, or pairs [fraction "
            "of training, steps] whose fractions rise from 0 to at most 1."
        )
    bounds = [*(round(fraction * steps) for fraction in fractions), steps]
    return [
        step
        for (start, stop), (_, every) in zip(pairwise(bounds), pairs, strict=True)
        for step in range(start + -start % every, stop, every)
        if step
    ]

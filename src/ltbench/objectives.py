"""Objectives on the confusion matrix: value, exact gradients, multipliers and gain matrices.

Notation, for K classes: C is the joint confusion matrix (rows truth, columns prediction, sum 1);
pi_k = sum_l C_kl the class prior; Q = C / pi the rows as probabilities; r_k = Q_kk recall;
c_l = sum_k C_kl coverage. Nothing here assumes that the prior is uniform. All is float64.

An objective maximises a function of recall and coverage. Minima and constraints enter through
multipliers, held fixed while the function, the *surrogate*, is differentiated:

* the least of some group recalls is min over the simplex of sum_g lambda_g r_g;
* coverage c_g >= target adds sum_g lambda_g (c_g - target), lambda >= 0;

where a group is one class, or the head or the tail, and takes the mean over its classes. So every
objective has a gradient w = d/dr and v = d/dc, and all else follows from these two vectors:

* :meth:`Objective.logit_gradient`, by the logits of the rows of C, as SelMix needs it;
* :meth:`Objective.gain`, for another class prior, as cost-sensitive losses need it.

Sources: CSST, arXiv 2304.14738; SelMix, arXiv 2403.18301; Narasimhan and Menon 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ltbench.errors import UserError
from ltbench.naming import resolve

FLOOR = 1e-12
"""Least multiplier on the simplex, so that its logarithm stays finite."""


def joint_confusion(
    counts: Tensor, smoothing: float = 0.0, class_names: Sequence[str] | None = None
) -> Tensor:
    """Turn counts n into the joint confusion matrix C with prior n_k / n.

    Args:
        counts: (K, K) images of class k that were predicted as l.
        smoothing: a >= 0 in Q_kl = (n_kl + a) / (n_k + a K), which keeps recalls off 0, where
            gradients vanish or are infinite. Leave it 0 for values and multipliers.
        class_names: K names for the message of an error; default: the classes' numbers.

    Raises:
        UserError: A class has no images, or an entry is negative or not finite.
    """
    if not (counts.isfinite().all() and (counts >= 0).all()):
        raise UserError("the confusion matrix has negative entries or entries that are not finite.")
    counts = counts.double()
    images = counts.sum(1)
    if missing := (images == 0).nonzero().flatten().tolist():
        named = ", ".join(class_names[c] if class_names else str(c) for c in missing[:5])
        raise UserError(
            f"the held-out set has no images of {len(missing)} of {len(counts)} classes (class "
            f"{named}{', ...' if len(missing) > 5 else ''}), so their recall is unknown.\n"
            "Hold out more (data.val_fraction), or give each class images in a val folder."
        )
    rows = (counts + smoothing) / (images + smoothing * len(counts))[:, None]
    return (images / images.sum())[:, None] * rows


def zero_recall_classes(counts: Tensor) -> int:
    """Count the classes of which no image is predicted right."""
    return int((counts.diagonal() == 0).sum())


def rates(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall (K,) and coverage (K,) of a joint confusion matrix."""
    return joint.diagonal() / joint.sum(1), joint.sum(0)


# Utilities: the value that the recalls (K,) have.


def mean(recall: Tensor) -> Tensor:
    """Arithmetic mean."""
    return recall.mean()


def harmonic_mean(recall: Tensor) -> Tensor:
    """Harmonic mean, 0 where a recall is 0."""
    return 1 / recall.reciprocal().mean()


def geometric_mean(recall: Tensor) -> Tensor:
    """Geometric mean, 0 where a recall is 0."""
    return recall.log().mean().exp()


class MultiplierRule(Protocol):
    """How multipliers follow what the held-out set shows: a low payoff gets a large multiplier."""

    def simplex(self, multipliers: Tensor, payoffs: Tensor) -> Tensor:
        """Return the multipliers (n,) of the least of ``payoffs`` (n,), on the simplex."""

    def penalty(self, multipliers: Tensor, slack: Tensor) -> Tensor:
        """Return the multipliers (n,) of the constraints ``slack`` (n,) >= 0, not negative."""


@dataclass
class Ascent:
    """Gradient steps that remember: CSST, arXiv 2304.14738, section 4.

    Args:
        rate: Step size omega > 0. What multipliers can do is the rate times the number of updates.
    """

    rate: float = 0.1

    def simplex(self, multipliers: Tensor, payoffs: Tensor) -> Tensor:
        """Take an exponentiated-gradient step: lambda exp(-rate payoff) over its sum."""
        return _softmax(multipliers.clamp_min(FLOOR).log() - self.rate * payoffs)

    def penalty(self, multipliers: Tensor, slack: Tensor) -> Tensor:
        """Take a projected gradient step: max(0, lambda - rate slack)."""
        return (multipliers - self.rate * slack).clamp_min(0)


@dataclass
class BestResponse:
    """Multipliers from the current rates alone: the rule of SelMix's code, arXiv 2403.18301.

    Args:
        rate: Sharpness omega > 0 of the softmax over payoffs.
        limit: Largest multiplier of a constraint.
        temperature: Shortfall of coverage at which a multiplier reaches 63 % of the limit.
    """

    rate: float = 50.0
    limit: float = 100.0
    temperature: float = 0.01

    def simplex(self, multipliers: Tensor, payoffs: Tensor) -> Tensor:
        """Return the softmax of -rate payoff."""
        return _softmax(-self.rate * payoffs)

    def penalty(self, multipliers: Tensor, slack: Tensor) -> Tensor:
        """Return max(0, limit (1 - exp(slack / temperature)))."""
        return self.limit * (slack.clamp_max(0) / self.temperature).expm1().abs()


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(0).clamp_min(FLOOR)


class Objective:
    """A utility of the recalls, without minima or constraints.

    Args:
        utility: Maps recalls (K,) to a scalar, differentiable.
        metric: Name of the metric by which the best epoch is chosen.

    Attributes:
        initial: (n,) float64 multipliers to start from; n = 0 here.
        linear: Whether fixed multipliers make it linear in the recalls, so that gains are exact.
        grouped: Whether it is about groups of classes, such as head and tail.
    """

    grouped = False

    def __init__(self, utility: Callable[[Tensor], Tensor], metric: str = "mean_recall") -> None:
        self.utility = utility
        self.metric = metric
        self.linear = utility is mean
        self.initial = torch.empty(0, dtype=torch.float64)

    def value(self, joint: Tensor) -> Tensor:
        """Return what is to be maximised, a scalar in [0, 1], without the constraints."""
        return self.utility(rates(joint)[0])

    def violation(self, joint: Tensor) -> Tensor:
        """Return by how much the worst constraint is missed, a scalar; 0 if there is none."""
        return joint.new_zeros(())

    def surrogate(self, recall: Tensor, coverage: Tensor, multipliers: Tensor) -> Tensor:
        """Return the smooth function of recall and coverage that fixed multipliers define."""
        return self.utility(recall)

    def scale(self, multipliers: Tensor) -> Tensor:
        """Return what SelMix divides the surrogate by, a scalar: 1 + the largest penalty."""
        return multipliers.new_ones(())

    def update(self, multipliers: Tensor, joint: Tensor, rule: MultiplierRule) -> Tensor:
        """Return the multipliers (n,) that follow from what the held-out set shows.

        Raises:
            UserError: They are not finite.
        """
        updated = self._update(multipliers, joint, rule)
        if not updated.isfinite().all():
            raise UserError(
                "a multiplier of the objective is not finite. Lower the rate of its update."
            )
        return updated

    def _update(self, multipliers: Tensor, joint: Tensor, rule: MultiplierRule) -> Tensor:
        return multipliers

    def weights(self, joint: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the surrogate's gradient by recall, w (K,), and by coverage, v (K,).

        Raises:
            UserError: It is not finite, because a recall is 0.
        """
        by_recall, by_coverage = torch.func.grad(self.surrogate, argnums=(0, 1))(
            *rates(joint), multipliers
        )
        if not by_recall.isfinite().all():
            raise UserError(
                "the objective has no gradient where the recall of a class is 0. Smooth the "
                "counts: set count_smoothing above 0."
            )
        return by_recall, by_coverage

    def logit_gradient(self, joint: Tensor, multipliers: Tensor) -> Tensor:
        """Return D (K, K), the surrogate's gradient by the logits of the rows of C.

        With C_kl = pi_k exp(x_kl) / sum_m exp(x_km),
        D_kl = w_k r_k (delta_kl - Q_kl) + C_kl (v_l - sum_j Q_kj v_j). Each row sums to 0.
        SelMix, arXiv 2403.18301, section 4, in the form that holds for every prior.
        """
        by_recall, by_coverage = self.weights(joint, multipliers)
        rows, (recall, _) = joint / joint.sum(1, keepdim=True), rates(joint)
        pull = by_recall * recall
        gradient = joint * (by_coverage - (rows @ by_coverage)[:, None]) - pull[:, None] * rows
        gradient.diagonal().add_(pull)
        return gradient

    def gain(self, prior: Tensor, joint: Tensor, multipliers: Tensor) -> Tensor:
        """Return G (K, K), G_ij = delta_ij w_i / pi_i + v_j: what predicting j for i is worth.

        CSST, arXiv 2304.14738, equation 3; for the harmonic and the geometric mean, which CSST
        does not have, the objective linearised at the current recalls.

        Args:
            prior: (K,) class prior pi of the images that are trained on.
            joint: (K, K) of the held-out set; linear objectives do not depend on it.
            multipliers: (n,).
        """
        by_recall, by_coverage = self.weights(joint, multipliers)
        return (by_recall / prior).diag() + by_coverage


class LeastRecall(Objective):
    """The least mean recall of some groups; multipliers on the simplex.

    Args:
        groups: (n, K) float64; row g averages over the classes of group g.
        metric: See :class:`Objective`.
    """

    def __init__(self, groups: Tensor, metric: str = "min_recall") -> None:
        super().__init__(lambda recall: (groups.to(recall.device) @ recall).min(), metric)
        self.linear = True
        self.groups = groups
        self.grouped = len(groups) < groups.shape[1]
        self.initial = torch.full((len(groups),), 1 / len(groups), dtype=torch.float64)

    def surrogate(self, recall: Tensor, coverage: Tensor, multipliers: Tensor) -> Tensor:
        """Return sum_g lambda_g r_g."""
        return multipliers @ (self.groups.to(recall.device) @ recall)

    def _update(self, multipliers: Tensor, joint: Tensor, rule: MultiplierRule) -> Tensor:
        return rule.simplex(multipliers, self.groups.to(joint.device) @ rates(joint)[0])


class Covered(Objective):
    """A utility of the recalls, where the mean coverage of each group must reach a target.

    Args:
        utility: Maps recalls (K,) to a scalar, differentiable.
        groups: (n, K) float64; row g averages over the classes of group g.
        target: Least mean coverage of a group, as a share of 1/K, in [0, 1].
        metric: See :class:`Objective`.

    Raises:
        UserError: The target cannot be met.
    """

    def __init__(
        self,
        utility: Callable[[Tensor], Tensor],
        groups: Tensor,
        target: float = 0.95,
        metric: str = "mean_recall",
    ) -> None:
        super().__init__(utility, metric)
        if not 0 <= target <= 1:
            raise UserError(
                f"coverage_target is {target}, but no classifier can give each class more than 1/K "
                "of the predictions: choose it in [0, 1]."
            )
        self.groups = groups
        self.grouped = len(groups) < groups.shape[1]
        self.target = target / groups.shape[1]
        self.initial = torch.full((len(groups),), 1 / groups.shape[1], dtype=torch.float64)

    def slack(self, coverage: Tensor) -> Tensor:
        """Return (n,) by how much each group is above its target."""
        return self.groups.to(coverage.device) @ coverage - self.target

    def violation(self, joint: Tensor) -> Tensor:
        """Return by how much the worst group misses the target, a scalar, not negative."""
        return (-self.slack(rates(joint)[1])).max().clamp_min(0)

    def surrogate(self, recall: Tensor, coverage: Tensor, multipliers: Tensor) -> Tensor:
        """Return the Lagrangian: utility + sum_g lambda_g (c_g - target)."""
        return self.utility(recall) + multipliers @ self.slack(coverage)

    def scale(self, multipliers: Tensor) -> Tensor:
        """Return 1 + the largest penalty."""
        return 1 + multipliers.max()

    def _update(self, multipliers: Tensor, joint: Tensor, rule: MultiplierRule) -> Tensor:
        return rule.penalty(multipliers, self.slack(rates(joint)[1]))


def each_class(class_counts: Tensor) -> Tensor:
    """Return the groups of one class each, (K, K)."""
    return torch.eye(len(class_counts), dtype=torch.float64)


def head_and_tail(class_counts: Tensor) -> Tensor:
    """Return two groups, (2, K): the floor(0.9 K) classes with most training images, and the rest.

    Raises:
        UserError: There are fewer than 10 classes, so that the tail would not be a tenth.
    """
    classes = len(class_counts)
    if classes < 10:
        raise UserError(
            f"objectives on head and tail need at least 10 classes, this data has {classes}: "
            "choose one on single classes."
        )
    head = 9 * classes // 10
    groups = torch.zeros(2, classes, dtype=torch.float64)
    order = class_counts.cpu().argsort(descending=True, stable=True)
    groups[0, order[:head]] = 1 / head
    groups[1, order[head:]] = 1 / (classes - head)
    return groups


OBJECTIVES: dict[str, Callable[[Tensor, float], Objective]] = {
    "mean_recall": lambda n, t: Objective(mean),
    "hmean_recall": lambda n, t: Objective(harmonic_mean, "hmean_recall"),
    "gmean_recall": lambda n, t: Objective(geometric_mean, "gmean_recall"),
    "min_recall": lambda n, t: LeastRecall(each_class(n)),
    "min_ht_recall": lambda n, t: LeastRecall(head_and_tail(n), "min_ht_recall"),
    "mean_recall_coverage": lambda n, t: Covered(mean, each_class(n), t),
    "hmean_recall_coverage": lambda n, t: Covered(harmonic_mean, each_class(n), t, "hmean_recall"),
    "mean_recall_ht_coverage": lambda n, t: Covered(mean, head_and_tail(n), t),
    "hmean_recall_ht_coverage": lambda n, t: Covered(
        harmonic_mean, head_and_tail(n), t, "hmean_recall"
    ),
}
"""Every objective by the name that a config gives it: (class counts, coverage target) -> it."""


def build_objective(name: str, class_counts: Tensor, coverage_target: float = 0.95) -> Objective:
    """Build an objective for the classes of a training set.

    Args:
        name: A key of :data:`OBJECTIVES`, or the import path of the user's own such function.
        class_counts: (K,) training images per class, which say what is head and tail.
        coverage_target: Least coverage as a share of 1/K, in [0, 1], for objectives with one.

    Raises:
        UserError: There is no such objective, head and tail have fewer than 10 classes, or the
            target cannot be met.
    """
    objective = resolve("objective", name, OBJECTIVES)(class_counts, coverage_target)
    if not isinstance(objective, Objective):
        raise UserError(
            f"objective '{name}' must be a function of class counts and a coverage target that "
            "returns an ltbench.objectives.Objective."
        )
    return objective


def decompose(gain: Tensor) -> tuple[Tensor, Tensor]:
    """Split G = M diag(G): return M (K, K), whose diagonal is 1, and the diagonal of G (K,).

    Narasimhan and Menon 2021; CSST, arXiv 2304.14738, equation 3.
    """
    diagonal = gain.diagonal()
    return gain / diagonal, diagonal

"""Which pairs of classes to mix: the gain of every pair in closed form, and policies on top of it.

Source: SelMix, arXiv 2403.18301, sections 4 and 5. A step on the mixture z_ij of the centroids of
classes i and j, labelled i, moves the logits of class k by V_ij^T z_k, where column l of V_ij is
(delta_il - p_ij,l) z_ij, and p_ij is the prediction at z_ij. With D = d objective / d logits, the
objective rises by G_ij = sum_kl D_kl (delta_il - p_ij,l) <z_ij, z_k> to first order. The bias of
the classifier is left alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor

from ltbench.errors import UserError


def pair_gains(
    centroids: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    share: float = 0.8,
    *,
    block: int = 1024,
) -> Tensor:
    """Return the gain of mixing each pair of classes.

    With A = Z Z^T, B = A D and the mixture weights s and 1 - s, G_ij = b_ij . (e_i - p_ij), where
    b_ij = s B_i + (1 - s) B_j. The exponentials of softmax(s S_i + (1 - s) S_j + bias), S = Z W^T,
    factor into one part of i and one of j, so that all K^2 predictions of K classes cost three
    matrix products of size K and are never held. Memory: five K x K matrices of float64 beside
    ``slopes``, and three of ``block`` x K.

    Args:
        centroids: Z (K, d), the mean feature of each class.
        weight: W (K, d) of the linear classifier.
        bias: (K,) of the classifier.
        slopes: D (K, K), derivative of the objective by the logits of the rows of the confusion
            matrix (:meth:`~ltbench.objectives.Objective.logit_gradient`).
        share: Mean weight s of the first element of a pair, in (0, 1].
        block: Rows that are computed at a time.

    Returns:
        G (K, K) float64; row the labelled class i, column its partner j.

    Raises:
        UserError: Features or weights are not finite, or logits overflow.
    """
    z, w, d = centroids.double(), weight.double(), slopes.double()
    for name, tensor in {"features": z, "classifier weights": w}.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"the {name} of the network are not finite: start from another checkpoint, or "
                "lower the learning rate."
            )
    logits = z @ w.T
    pull = z @ z.T @ d
    partner = _exp_of_rows((1 - share) * logits)
    pulled_partner = pull * partner
    first = logits.mul_(share).add_(bias)
    gains = torch.empty_like(pull)
    label = pull.diagonal()
    for start in range(0, len(z), block):
        rows = slice(start, start + block)
        own = _exp_of_rows(first[rows])
        expected = share * (pull[rows] * own) @ partner.T + (1 - share) * own @ pulled_partner.T
        expected /= own @ partner.T
        gains[rows] = share * label[rows, None] + (1 - share) * pull.T[rows] - expected
    if not gains.isfinite().all():
        raise UserError(
            "the logits of the network are thousands apart: start from another checkpoint, or "
            "lower the learning rate."
        )
    return gains


def _exp_of_rows(logits: Tensor) -> Tensor:
    # A factor on a row of exponentials falls out of its softmax.
    return (logits - logits.amax(1, keepdim=True)).exp_()


def selective(gains: Tensor, sharpness: float = 10.0, positive_only: bool = True) -> Tensor:
    """Return P (K, K) = softmax(sharpness G) over all pairs; arXiv 2403.18301, section 4.

    ``positive_only`` gives pairs without a gain no share, as the published code does; if no pair
    has one, all get the same.
    """
    weights = (sharpness * (gains - gains.max())).exp()
    if positive_only:
        weights = torch.where(gains > 0, weights, 0)
    return weights / weights.sum() if weights.any() else uniform(gains)


def uniform(gains: Tensor) -> Tensor:
    """Return equal shares of all pairs: plain mixup over balanced classes."""
    return torch.full_like(gains, 1 / gains.numel())


def class_balanced(gains: Tensor) -> Tensor:
    """Return equal shares of the pairs of a class with itself: no mixing of classes."""
    return torch.eye(len(gains), dtype=gains.dtype, device=gains.device) / len(gains)


def greedy(gains: Tensor) -> Tensor:
    """Return the whole share for the pair with the largest gain."""
    shares = torch.zeros_like(gains)
    shares.view(-1)[gains.argmax()] = 1
    return shares


CONTROLS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": uniform,
    "class_balanced": class_balanced,
    "greedy": greedy,
}
"""Policies to compare :func:`selective` with, by their names in a config."""


def smooth(shares: Tensor) -> Tensor:
    """Give all pairs together 1 / (K + 1) more, as the sampler of the published code does."""
    classes = len(shares)
    return (shares + classes**-3) / (1 + 1 / classes)


def without_empty(shares: Tensor, available: Tensor) -> Tensor:
    """Take the shares of partners without images away; the rest of a row gets them.

    Args:
        shares: P (K, K).
        available: (K,) bool, classes with images.

    Raises:
        UserError: No pair is left.
    """
    left = torch.where(available, shares, 0)
    sums = left.sum(1, keepdim=True)
    left = torch.where(sums > 0, left * (shares.sum(1, keepdim=True) / sums), 0)
    if not left.any():
        raise UserError(
            "no pair of classes is left to mix: no pseudo-label names a class that would gain. "
            "Set pair_smoothing to true, or start from a better checkpoint."
        )
    return left / left.sum()


@dataclass
class GainHistory:
    """What gains predicted in each cycle, and what happened.

    Attributes:
        predicted: Change of the objective by the gains of a cycle, to first order and by the
            classifier alone, so that its rank matters and not its size.
        actual: Change at the next look at the validation images; at most one cycle behind.
        rates: Learning rate of the classifier in each cycle.
    """

    predicted: list[float] = field(default_factory=list)
    actual: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def begin(self, gain: float, rate: float, steps: int) -> None:
        """Note the expected gain per step of a cycle, its learning rate and its steps."""
        self.rates.append(rate)
        self.predicted.append(rate * steps * gain)

    def last_change(self) -> tuple[float, float] | None:
        """Return predicted and actual change of the last cycle whose effect is known."""
        done = len(self.actual)
        return (self.predicted[done - 1], self.actual[-1]) if done else None

    def summary(self) -> dict[str, float]:
        """Return the last changes and the rank correlations of all, as far as they are defined.

        ``change_correlation`` is that of predicted and actual changes. Both fall with the learning
        rate, which alone makes them agree; ``gain_correlation`` is that of both over the rate.
        """
        summary = {"predicted_change": self.predicted[-1]}
        if self.actual:
            summary["actual_change"] = self.actual[-1]
        changes = list(zip(self.predicted, self.actual, self.rates, strict=False))
        pairs = {
            "change_correlation": [(predicted, actual) for predicted, actual, _ in changes],
            "gain_correlation": [(p / rate, a / rate) for p, a, rate in changes if rate],
        }
        for name, values in pairs.items():
            if values and all(len(set(column)) > 1 for column in zip(*values, strict=True)):
                summary[name] = float(stats.spearmanr(values).statistic)
        return summary

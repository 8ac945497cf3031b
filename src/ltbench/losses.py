"""Losses for long-tailed classification: one pure function an equation.

Every loss is ``name(logits, targets, class_counts, *, <constants>, weight=None) -> scalar``:

* ``logits``: float, shape (B, C). Half and bfloat16 inputs are computed in float32.
* ``targets``: int64 labels, shape (B,), or probabilities, shape (B, C), each row summing to 1 (what
  mixup, cutmix and label smoothing give). A one-hot row means the same as its label.
* ``class_counts``: training images per class, shape (C,), all positive where a prior or a margin
  depends on them, on the device of the logits.
* ``weight``: class weights, shape (C,), or None for all ones.

Notation: n_c count, N = sum n_c, pi_c = n_c / N, z logits, y label, t soft target, w class weight,
l = -sum_c t_c log softmax(z)_c. The **weighted mean** is sum_i w_i l_i / sum_i w_i, w_i = w_{y_i}:
it divides by the weights in the batch, not by B. A soft target has w_i = sum_c t_ic w_c, one weight
for the whole sample, so that the best prediction for it is still t itself.

At test time every loss predicts arg max z: no margin, prior or temperature is applied there.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ltbench.errors import UserError, unknown_name
from ltbench.naming import resolve


class BoundLoss(Protocol):
    """A loss whose constants are set, as :func:`bind_loss` returns it."""

    def __call__(
        self, logits: Tensor, targets: Tensor, class_counts: Tensor, *, weight: Tensor | None = None
    ) -> Tensor:
        """Return the scalar loss of a batch."""


def check_counts(class_counts: Tensor) -> None:
    """Refuse counts for which a prior, a margin or a class-balanced weight is not defined.

    The losses do not check, because a look at the values on every step would stall the device: a
    method calls this once, when it learns the counts.

    Raises:
        UserError: There is no class, or a count is not positive and finite.
    """
    counts = torch.as_tensor(class_counts)
    if counts.ndim != 1 or not len(counts):
        raise UserError(f"class counts need shape (C,) with C >= 1, got {tuple(counts.shape)}.")
    bad = (~((counts > 0) & torch.isfinite(counts))).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise UserError(
            f"class counts: {len(bad)} of {len(counts)} classes have no training images (class "
            f"{shown}), so priors, margins and weights are not defined.\nGive each class an image, "
            "drop those classes, or use cross_entropy_loss without weights."
        )


def class_balanced_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Weights by the effective number of images: w_c proportional to (1-beta)/(1-beta^n_c).

    ``beta=0`` gives ones; ``beta -> 1`` approaches 1/n_c. Cui et al. 2019, arXiv 1901.05555.
    Deferred re-weighting (Cao et al. 2019, arXiv 1906.07413) switches to these late in training.

    Returns:
        Shape (C,), float32 (computed in float64), with sum C.

    Raises:
        UserError: ``beta`` is outside [0, 1), or a count is not positive.
    """
    if not 0 <= beta < 1:
        raise UserError(f"class_balanced_weights: beta must be in [0, 1), got {beta}.")
    check_counts(class_counts)
    counts = torch.as_tensor(class_counts).double()
    weights = (1 - beta) / (1 - beta**counts)
    return (weights * (len(counts) / weights.sum())).float()


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Margins m_c = max_margin * (n_min / n_c)^(1/4), shape (C,): the rarest class has the largest.

    Cao et al. 2019, arXiv 1906.07413, scaled to a largest margin of ``max_margin``.
    """
    counts = _as_float(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def vs_divisors(class_counts: Tensor, gamma: float) -> Tensor:
    """Logit divisors D_c = (n_max / n_c)^gamma >= 1, shape (C,).

    Kini et al. 2021, arXiv 2103.01550, *multiplies* by the reciprocal, Delta_c = 1 / D_c.
    """
    counts = _as_float(class_counts)
    return (counts.max() / counts) ** gamma


def vs_offsets(class_counts: Tensor, tau: float) -> Tensor:
    """Logit offsets iota_c = tau * log pi_c <= 0 for tau >= 0, shape (C,)."""
    counts = _as_float(class_counts)
    return tau * (counts / counts.sum()).log()


def cross_entropy_loss(
    logits: Tensor, targets: Tensor, class_counts: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy: the weighted mean of l. The counts are not used."""
    return _weighted_cross_entropy(logits, targets, weight)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    gamma: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Softmax focal loss: (1/B) sum_i w_i (1 - p_i)^gamma l_i with p_i = exp(-l_i).

    p is the probability of the label whatever the weights are. The mean is over B, not over the
    weights; gamma >= 0, and 0 gives the cross-entropy. Lin et al. 2017, arXiv 1708.02002, eq. 5,
    with the class weight as its alpha.
    """
    loss = _sample_losses(logits, targets)
    focal = _one_minus_exp(loss) ** gamma * loss
    return focal.mean() if weight is None else (_sample_weights(targets, weight) * focal).mean()


def focal_official_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    gamma: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Focal loss of the LDAM-DRW code: (1/B) sum_i (1 - p_i)^gamma u_i, u = w l, p = exp(-u).

    For comparison with published numbers only: with weights, p = softmax(z)_y^w is no probability
    of the label. Without weights it equals :func:`focal_loss`, whose arguments it shares.
    """
    loss = _sample_losses(logits, targets)
    if weight is not None:
        loss = _sample_weights(targets, weight) * loss
    return (_one_minus_exp(loss) ** gamma * loss).mean()


def ldam_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    weight: Tensor | None = None,
) -> Tensor:
    """LDAM: the weighted cross-entropy of scale * x, where the label's cosine lost its margin m_y.

    The logits are cosines. A soft target takes from each class its share of the margin: x - m * t.
    The rarest class has ``max_margin``: 0.5 on CIFAR-LT, 0.3 on ImageNet-LT and iNaturalist. Cao et
    al. 2019, arXiv 1906.07413.
    """
    shares = targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1])
    margins = ldam_margins(class_counts, max_margin)
    return _weighted_cross_entropy(scale * (logits - margins * shares), targets, weight)


def logit_adjusted_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    tau: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Logit adjustment: the weighted cross-entropy of z + tau log pi.

    ``tau`` 0 gives the cross-entropy, 1 is consistent for the balanced error. Menon et al. 2021,
    arXiv 2007.07314, eq. 10.
    """
    return _weighted_cross_entropy(logits + vs_offsets(class_counts, tau), targets, weight)


def balanced_softmax_loss(
    logits: Tensor, targets: Tensor, class_counts: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Balanced softmax: the weighted cross-entropy of z + log n. The counts must be positive.

    Equal to :func:`logit_adjusted_loss` with tau = 1, since log N shifts all logits alike. Ren et
    al. 2020, arXiv 2007.10740.
    """
    return _weighted_cross_entropy(logits + _as_float(class_counts).log(), targets, weight)


def cdt_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    gamma: float = 0.3,
    weight: Tensor | None = None,
) -> Tensor:
    """Class-dependent temperatures: the weighted cross-entropy of z / D, D of :func:`vs_divisors`.

    ``gamma`` >= 0; 0 gives the cross-entropy. Ye et al. 2020, arXiv 2001.01385.
    """
    return _weighted_cross_entropy(logits / vs_divisors(class_counts, gamma), targets, weight)


def label_aware_smoothing(class_counts: Tensor, head: float, tail: float) -> Tensor:
    """Smoothing of labels by class, (C,): ``head`` for the largest, ``tail`` for the smallest one.

    eps_c = tail + (head - tail) sin(pi (n_c - n_min) / (2 (n_max - n_min))). Where all classes are
    alike, it is ``tail``. Zhong et al. 2021 (MiSLAS), arXiv 2104.00466, the concave form.
    """
    counts = _as_float(class_counts)
    share = (counts - counts.min()) / (counts.max() - counts.min()).clamp_min(1)
    return tail + (head - tail) * (math.pi / 2 * share).sin()


def label_aware_smoothing_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    head: float = 0.3,
    tail: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Label-aware smoothing: the weighted cross-entropy of targets (1 - eps_y) t + eps_y / C.

    eps is :func:`label_aware_smoothing`; a soft target has eps = sum_c t_c eps_c. Equal constants
    are plain label smoothing. Zhong et al. 2021, arXiv 2104.00466: 0.3 and 0 on CIFAR-10-LT,
    ImageNet-LT and iNaturalist 2018, 0.4 and 0.1 on CIFAR-100-LT.
    """
    classes = logits.shape[1]
    shares = targets if targets.is_floating_point() else F.one_hot(targets, classes)
    amount = _sample_weights(targets, label_aware_smoothing(class_counts, head, tail))[:, None]
    losses = _sample_losses(logits, (1 - amount) * shares + amount / classes)
    return _weighted_mean(losses, targets, weight)


def vs_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    gamma: float = 0.15,
    tau: float = 1.25,
    weight: Tensor | None = None,
) -> Tensor:
    """Vector scaling: the weighted cross-entropy of z_c / D_c + iota_c.

    D is :func:`vs_divisors` and iota is :func:`vs_offsets`: gamma = 0 is logit adjustment, tau = 0
    is CDT, both 0 the cross-entropy. Kini et al. 2021, arXiv 2103.01550, whose leading weight is
    ``weight``. On CIFAR-10-LT gamma is 0.15 and tau 1.25, on CIFAR-100-LT 0.05 and 0.75.
    """
    scaled = logits / vs_divisors(class_counts, gamma) + vs_offsets(class_counts, tau)
    return _weighted_cross_entropy(scaled, targets, weight)


LOSSES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        cross_entropy_loss,
        focal_loss,
        focal_official_loss,
        ldam_loss,
        logit_adjusted_loss,
        balanced_softmax_loss,
        cdt_loss,
        label_aware_smoothing_loss,
        vs_loss,
    )
}
"""Every loss by the name that a config gives it."""


def bind_loss(name: str, args: Mapping[str, float] | None = None) -> BoundLoss:
    """Set a loss's constants once, so that a method calls it with the batch alone.

    Args:
        name: A key of :data:`LOSSES`, or the import path of the user's own function of the same
            form: constants are keyword-only, and ``weight`` is among them.
        args: Constants by name, such as ``{"gamma": 0.15, "tau": 1.25}``; defaults for the rest.

    Returns:
        ``loss(logits, targets, class_counts, weight=None) -> scalar``.

    Raises:
        UserError: There is no such loss, or it has no such constant.
    """
    loss = resolve("loss", name, LOSSES)
    parameters = [] if isinstance(loss, type) else inspect.signature(loss).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if "weight" not in keywords:
        raise UserError(
            f"loss '{name}' must be a function of (logits, targets, class_counts, *, weight=None) "
            "and, between the star and weight, its constants."
        )
    constants = keywords - {"weight"}
    for key in args or {}:
        if not constants:
            raise UserError(f"loss '{name}' has no constants, but loss_args gives '{key}'.")
        if key not in constants:
            raise unknown_name(f"constant of loss '{name}'", key, constants)
    return functools.partial(loss, **(args or {}))


def _as_float(class_counts: Tensor) -> Tensor:
    counts = torch.as_tensor(class_counts)
    return counts if counts.is_floating_point() else counts.float()


def _sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return l of each sample, shape (B,), in float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # The dtype tells labels from probabilities: shapes cannot when B = C.
    targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
    return F.cross_entropy(logits, targets, reduction="none")


def _sample_weights(targets: Tensor, weight: Tensor) -> Tensor:
    """Return w_y, or sum_c t_c w_c for soft targets, shape (B,)."""
    # Not a matrix product, which autocast would compute in half precision.
    return (targets * weight).sum(1) if targets.is_floating_point() else weight[targets]


def _weighted_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    return _weighted_mean(_sample_losses(logits, targets), targets, weight)


def _weighted_mean(losses: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean()
    weights = _sample_weights(targets, weight)
    return (weights * losses).sum() / weights.sum()


def _one_minus_exp(loss: Tensor) -> Tensor:
    """Return 1 - exp(-loss), kept off 0, where a power below 1 has an infinite slope."""
    return (-torch.expm1(-loss)).clamp_min(torch.finfo(loss.dtype).tiny)

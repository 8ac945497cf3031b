"""Where the gradient of a step is taken: at the weights, or at perturbed weights nearby.

A rule runs the forward and backward passes of one step and leaves the descent gradient in
``p.grad`` with the weights as they were, so the optimizer stays plain: its momentum is saved, its
schedule is obeyed and ``global_step`` counts. The caller then clips that gradient and steps::

    loss = rule.backward(Step(self, loss_of, batch, size, ...))
    optimizer.step()
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from math import cos, inf, pi
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench.errors import UserError
from ltbench.optim.schedules import epoch_of, require_rising
from ltbench.optim.step import Step


class GradientRule:
    """How one step finds its gradient.

    Attributes:
        diagnostics: What the last step measured, for the logger; scalars by name.
    """

    diagnostics: Mapping[str, Tensor | float] = {}

    def backward(self, step: Step) -> Tensor:
        """Leave the descent gradient in ``p.grad``; weights are unchanged, old gradients dropped.

        Returns:
            The loss of the batch, a detached scalar, as the rule's first pass saw it.
        """
        step.module.zero_grad()
        return self._backward(step)

    def _backward(self, step: Step) -> Tensor:
        return step.run()


@dataclass
class Plain(GradientRule):
    """The gradient at the weights themselves: ordinary training."""


@dataclass
class SAM(GradientRule):
    """Sharpness-aware minimisation: the gradient at the worst point within a radius.

    To first order that point is ``w + rho g / ||g||``, with one norm over all parameters; weight
    decay stays in the optimizer, out of ``g``. A step takes two passes and one copy of the weights.
    Dropout draws the same mask in both passes. The returned loss is that of the unperturbed
    weights; ``diagnostics`` has ``rho``, ``gradient_norm`` (of the pass before) and
    ``perturbed_loss``.

    Source: Foret et al., arXiv 2010.01412, equation 2. Adaptive: ASAM, arXiv 2102.11600. Large
    radii against the saddles of tail classes: arXiv 2212.13827.

    Args:
        rho: Radius, at least 0; or pairs (point in training, radius) in order, the first at 0:
            ``[[0, 0.05], [0.055, 0.1], [0.666, 0.5]]``.
        schedule: Between two pairs the radius stays (``step``) or goes straight (``linear``).
        adaptive: Scale the ball by the size of each weight; needs 10 to 40 times the radius.
        bn_update: Which passes update BatchNorm's running statistics: the first alone, or both,
            as the code of 2212.13827 does. The trained weights are the same.
        sync_ascent: Ascend along the gradient of the batch of all ranks; otherwise each rank along
            that of its own share, as in the SAM paper, which gives another result.
    """

    rho: float | list[tuple[int | float, float]] = 0.05
    schedule: Literal["step", "linear"] = "step"
    adaptive: bool = False
    bn_update: Literal["first", "both"] = "first"
    sync_ascent: bool = True

    def __post_init__(self) -> None:
        pairs = self._pairs()
        if not pairs or pairs[0][0] != 0:
            raise UserError(
                f"SAM rho {self.rho}: give one radius, or pairs [point in training, radius], the "
                "first at point 0."
            )
        require_rising([point for point, _ in pairs], "SAM rho: the points")
        if not all(0 <= radius < inf for _, radius in pairs):
            raise UserError(f"SAM rho {self.rho}: a radius must be finite and at least 0.")

    def radius(self, epoch: int, epochs: int) -> float:
        """Return rho in the 0-based ``epoch`` of ``epochs``."""
        starts = [epoch_of(point, epochs) for point, _ in self._pairs()]
        radii = [radius for _, radius in self._pairs()]
        if self.schedule == "linear":
            return float(np.interp(epoch, starts, radii))
        return radii[int(np.searchsorted(starts, epoch, side="right")) - 1]

    def _pairs(self) -> list[tuple[int | float, float]]:
        return self.rho if isinstance(self.rho, list) else [(0, self.rho)]

    def _backward(self, step: Step) -> Tensor:
        cuda = {p.device for p in step.module.parameters() if p.is_cuda}
        # The forked random state makes the second pass start where the first one did.
        with nullcontext() if self.sync_ascent else step.no_sync(), torch.random.fork_rng(cuda):
            loss = step.run()
        params: list[Tensor] = [p for p in step.module.parameters() if p.grad is not None]
        rho = self.radius(step.epoch, step.epochs)
        with weights_restored(params):
            norm = ascend(params, rho, self.adaptive)
            step.module.zero_grad()
            with batch_norm_frozen(step.module) if self.bn_update == "first" else nullcontext():
                perturbed_loss = step.run(again=True)
        self.diagnostics = {"rho": rho, "gradient_norm": norm, "perturbed_loss": perturbed_loss}
        return loss


@dataclass
class LPFSGD(GradientRule):
    """SGD on the loss smoothed by a Gaussian low-pass filter.

    Each part of the batch sees its own noisy weights (:func:`add_filter_noise`); the gradient is
    the mean over the parts, weighted by their sizes. The returned loss is that of the noisy
    weights; ``diagnostics`` has ``sigma``.

    Source: Bisla et al., arXiv 2201.08025.

    Args:
        sigma: Noise relative to the norm of a filter, at least 0, when training starts.
        parts: Number of parts that a batch is cut into, at least 1.
        growth: Factor on ``sigma`` reached, along half a cosine, when training ends; at least 0.
    """

    sigma: float = 0.002
    parts: int = 1
    growth: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma < 0 or self.parts < 1 or self.growth < 0:
            raise UserError(f"{self}: sigma and growth must be at least 0, parts at least 1.")

    def _backward(self, step: Step) -> Tensor:
        params: list[Tensor] = [p for p in step.module.parameters() if p.requires_grad]
        sigma = self.sigma * (1 + (self.growth - 1) * (1 - cos(pi * step.epoch / step.epochs)) / 2)
        parts = min(self.parts, step.size)
        losses = []
        for start, stop in pairwise(step.size * i // parts for i in range(parts + 1)):
            last = stop == step.size
            # Each rank adds up its gradients, so that only the last pass has to average them.
            with nullcontext() if last else step.no_sync(), weights_restored(params):
                add_filter_noise(params, sigma, step.generator)
                losses.append(step.run(slice(start, stop)))
        self.diagnostics = {"sigma": sigma}
        return torch.stack(losses).sum()


@dataclass
class PGD(GradientRule):
    """Perturbed gradient descent: Gaussian noise on the gradient of every step.

    Not for precision ``16-mixed``, where the gradient still carries the loss scale.

    Source: Jin et al., arXiv 1703.00887; there the noise is rarer and uniform in a ball.

    Args:
        sigma: Standard deviation of the noise on each entry of the gradient, at least 0.
    """

    sigma: float = 1e-3

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise UserError(f"{self}: sigma must be at least 0.")

    def _backward(self, step: Step) -> Tensor:
        loss = step.run()
        grads = [p.grad for p in step.module.parameters() if p.grad is not None]
        torch._foreach_add_(grads, _noise_like(grads, step.generator), alpha=self.sigma)
        return loss


@torch.no_grad()
def ascend(params: list[Tensor], rho: float, adaptive: bool = False) -> Tensor:
    """Move weights in place to SAM's ascent point, along gradients that all of them have.

    The move is ``rho g / (||g|| + 1e-12)``, or ``rho w^2 g / (||w g|| + 1e-12)`` if ``adaptive``,
    with one norm over all parameters, in float32 or wider, whatever the loss scale. A gradient
    that is not finite moves nothing, so that the second pass overflows as the first one did. The
    gradients become the moves, so that no other copy is made.

    Returns:
        The norm, a scalar on the device of the weights; nothing here waits for its value.
    """
    move = [p.grad for p in params if p.grad is not None]
    if adaptive:
        torch._foreach_mul_(move, params)
    wide = torch.promote_types(move[0].dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(move, dtype=wide)))
    torch._foreach_mul_(move, rho / (norm + 1e-12))
    if adaptive:
        torch._foreach_mul_(move, params)
    for tensor in move:
        # An infinite norm has scaled finite entries to 0 and made the others NaN; a NaN, all.
        tensor.nan_to_num_(0.0, 0.0, 0.0)
    torch._foreach_add_(params, move)
    return norm


@torch.no_grad()
def add_filter_noise(params: list[Tensor], sigma: float, generator: torch.Generator) -> None:
    """Add Gaussian noise in place, in proportion to the norm of each output filter.

    Its standard deviation is ``sigma`` times the L2 norm of the filter (a slice along the first
    dimension) for tensors of two dimensions or more, and of the whole tensor for others.

    Source: Bisla et al., arXiv 2201.08025.
    """
    noise = _noise_like(params, generator)
    for tensor, p in zip(noise, params, strict=True):
        inner = tuple(range(1, p.ndim)) or None
        tensor.mul_(torch.linalg.vector_norm(p, dim=inner, keepdim=True))
    torch._foreach_add_(params, noise, alpha=sigma)


def _noise_like(tensors: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [torch.empty_like(t, requires_grad=False).normal_(generator=generator) for t in tensors]


@contextmanager
def weights_restored(params: list[Tensor]) -> Iterator[None]:
    """Restore the weights bit for bit at the end, also after an exception."""
    saved = [p.detach().clone() for p in params]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
        torch.clear_autocast_cache()  # the cached copies are of the moved weights


@contextmanager
def batch_norm_frozen(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm from updating its buffers; in training it still uses batch statistics.

    Unlike momentum 0 this leaves the batch counter alone and lets no NaN into the buffers.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    tracked = [m.track_running_stats for m in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, track in zip(norms, tracked, strict=True):
            norm.track_running_stats = track

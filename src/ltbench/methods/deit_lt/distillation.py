"""Distillation out of distribution: a frozen teacher, what it sees, and what its answers weigh.

The losses are those of DeiT (Touvron et al., arXiv 2012.12877) with the deferred re-weighting of
DeiT-LT (Rangwani et al., arXiv 2404.02900). Each gives one value a sample, (B,); then
:func:`weighted_mean` brings them together.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.losses import check_counts, class_balanced_weights
from ltbench.models import InputStatistics

Form = Literal["normalised", "paper"]


def hard_distillation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with what the teacher holds most likely, no temperature: (B,).

    Touvron et al., arXiv 2012.12877, equation 3; Rangwani et al., arXiv 2404.02900.

    Args:
        logits: Of the student's DIST head, (B, C).
        targets: The teacher's labels (B,), or shares of the classes (B, C).
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def soft_distillation_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Divergence KL(teacher || student) at a temperature T, times T^2 / C: (B,).

    Touvron et al., arXiv 2012.12877, equation 2; the division by C is that of their code.

    Args:
        logits: Of the student's DIST head, (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.
    """
    student, teacher = (z.float().div(temperature).log_softmax(1) for z in (logits, teacher_logits))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return divergence * (temperature**2 / logits.shape[1])


def drw_weights(class_counts: Tensor, beta: float = 0.9999, form: Form = "normalised") -> Tensor:
    """Class weights of the DIST loss in its last phase, (C,) float32.

    ``paper``: w_c = 1 / e_c with e_c = (1 - beta^n_c) / (1 - beta), the effective number of images.
    ``normalised``: the same scaled to a sum of C, as in the published code. Rangwani et al., arXiv
    2404.02900, after Cao et al., arXiv 1906.07413.

    Args:
        class_counts: Training images of each class, (C,), all positive.
        beta: In [0, 1).
        form: Which of the two.
    """
    if form == "normalised":
        return class_balanced_weights(class_counts, beta)
    check_counts(class_counts)
    return ((1 - beta) / (1 - beta ** class_counts.double())).float()


def weighted_mean(
    losses: Tensor, targets: Tensor, weight: Tensor | None = None, form: Form = "normalised"
) -> Tensor:
    """Bring the losses of a batch together: the scalar sum_b w_b l_b / sum_b w_b.

    The form of the paper divides by B instead, so that its weights, all below 1, shrink the term by
    up to the effective number of images of the largest class.

    Args:
        losses: (B,).
        targets: What the weights go by: labels (B,), or shares of the classes (B, C), whose weight
            is sum_c t_c w_c.
        weight: Of the classes, (C,), or None for all ones.
        form: ``normalised`` or ``paper``.
    """
    if weight is None:
        return losses.mean()
    weights = (targets * weight).sum(1) if targets.is_floating_point() else weight[targets]
    total = (weights * losses).sum()
    return total / (weights.sum() if form == "normalised" else len(losses))


def resize(images: Tensor, size: int, antialias: bool) -> Tensor:
    """Bring normalised images (B, C, H, W) to ``size`` pixels a side, bicubic."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=antialias)


class Teacher:
    """A frozen network that labels the very images that the student is trained on.

    It is not a module, to stay out of its student's parameters, checkpoints, averages and modes.

    Args:
        network: Maps images to logits, in evaluation mode.
        size: Side in pixels that images are brought to for it.
        antialias: Whether that takes means over pixels. Without, an image that was enlarged by an
            odd factor comes back as it was.
        seen: How the student's images are normalised.
        known: How the teacher's were in its training; None: the student's are not changed.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        antialias: bool = False,
        seen: InputStatistics | None = None,
        known: InputStatistics | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.size, self.antialias = size, antialias
        self.scale, self.shift = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        if seen and known:
            mean, std, target, unit = (
                torch.tensor(v).view(-1, 1, 1) for v in (seen.mean, seen.std, known.mean, known.std)
            )
            self.scale, self.shift = std / unit, (mean - target) / unit

    def to(self, device: torch.device) -> "Teacher":
        """Move to a device."""
        self.network.to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        return self

    def view(self, images: Tensor) -> Tensor:
        """Return what the teacher sees of the student's normalised images (B, C, H, W)."""
        return resize(images, self.size, self.antialias) * self.scale + self.shift

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of the student's normalised images (B, C, H, W)."""
        return self.network(self.view(images))  # type: ignore[no-any-return]

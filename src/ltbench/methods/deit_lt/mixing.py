"""Mixup and CutMix as ViTs are trained with them: timm's, with draws that come from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from ltbench.errors import UserError


class PairMixing:
    """Mix each image with the one at its place counted from the end, all by one lambda.

    Mixup: arXiv 1710.09412. CutMix: arXiv 1905.04899; a fair coin says which of the two a batch
    gets, and CutMix's lambda is the share that its box leaves. Targets are smoothed first.

    Args:
        num_classes: C.
        mixup: Alpha of mixup's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's; 0 is off.
        smoothing: Share of each target that is spread over all classes, in [0, 1].
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float, smoothing: float) -> None:
        if mixup < 0 or cutmix < 0 or not 0 <= smoothing <= 1:
            raise UserError(
                f"mixup {mixup}, cutmix {cutmix}, smoothing {smoothing}: give alphas of at least "
                "0 and a smoothing in [0, 1]."
            )
        self.target = {"num_classes": num_classes, "smoothing": smoothing}
        self.mixer: Any = None
        if mixup or cutmix:
            options = {"num_classes": num_classes, "label_smoothing": smoothing}
            self.mixer = Mixup(mixup, cutmix, **options)  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Mix images (B, C, H, W) in place; of an odd number the last stays as it is.

        Returns:
            The share of each class in each image, (B, C), rows summing to 1.
        """
        even = len(images) // 2 * 2 if self.mixer else 0
        targets: Tensor = mixup_target(labels[even:], **self.target)  # type: ignore[no-untyped-call]
        if self.mixer is None:
            return targets
        with _numpy_seeded(seed):
            _, mixed = self.mixer(images[:even], labels[:even])
        return torch.cat([mixed, targets])


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed the global generator, which timm draws from, and restore its state at the end."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)

"""Where a training diverged, without a synchronisation of host and device in every step."""

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_NAMED = 8  # images in the message


class FirstBadStep:
    """The first step whose loss was not finite, kept on the device; as text, step and images."""

    def __init__(self) -> None:
        self._step: Tensor | None = None

    def watch(self, loss: Tensor, step: int, index: Tensor) -> None:
        """Look at the loss (a scalar) of a step and the indices (B,) of its images."""
        loss, index = loss.detach(), index.to(loss.device)
        if self._step is None:
            self._step = torch.full((), -1, device=loss.device)
            self._index = torch.full_like(index, -1)
        first = ~loss.isfinite() & (self._step < 0)
        if len(index) > len(self._index):
            self._index = F.pad(self._index, (0, len(index) - len(self._index)), value=-1)
        index = F.pad(index, (0, len(self._index) - len(index)), value=-1)
        self._step = torch.where(first, step, self._step)
        self._index = torch.where(first, index, self._index)

    def __str__(self) -> str:
        if self._step is None or int(self._step) < 0:
            return ""
        index = [i for i in self._index.tolist() if i >= 0]
        more = f", ... ({len(index)} in all)" if len(index) > MOST_NAMED else ""
        images = ", ".join(map(str, index[:MOST_NAMED]))
        return f"step {int(self._step)}, training images {images}{more}"

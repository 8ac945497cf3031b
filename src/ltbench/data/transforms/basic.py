"""Augmentation of whole batches of uint8 images, on the device, each image with its own draw.

Every transform takes ``(B, C, H, W)`` uint8 images and a generator on their device, and returns
images of the same kind; the data module normalises afterwards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ltbench import seeding
from ltbench.errors import UserError


def constants(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for it (as ``device=`` does)."""
    return torch.tensor(values).to(device, non_blocking=True)


def on_host(generator: torch.Generator) -> torch.Generator:
    """Return a generator on the host, whose draws can be read without waiting for a device.

    A generator of the CPU is returned itself. For one of a GPU it is a new one, seeded by its seed
    and offset, which are known on the host; so it changes whenever the GPU's has drawn.
    """
    if generator.device.type == "cpu":
        return generator
    place = int.from_bytes(bytes(generator.get_state().tolist()), "little")
    return seeding.generator("cpu", place, "host")


class BatchTransform(nn.Module):
    """Base of the batched transforms."""

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Transform ``(B, C, H, W)`` uint8 images with draws from ``generator`` only."""
        raise NotImplementedError


class RandomCrop(BatchTransform):
    """Pad each side with ``padding`` black pixels, then cut a random window of the old size."""

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        if padding < 0:
            raise UserError(f"RandomCrop: padding is {padding}; it must be at least 0 pixels.")
        self.padding = padding

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = images.shape
        pad, device = self.padding, images.device
        places = 2 * pad + 1
        top, left = torch.randint(places, (2, batch, 1), generator=generator, device=device)[..., 0]
        # Channels last, as convolutions like it: a line of a window is then a run of bytes.
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous()
        image, row, column, _ = padded.stride()
        windows = padded.as_strided(
            (batch, places, places, height, width * channels), (image, row, column, row, 1)
        )
        chosen = windows[torch.arange(batch, device=device), top, left]
        return chosen.view(batch, height, width, channels).permute(0, 3, 1, 2)


class HorizontalFlip(BatchTransform):
    """Mirror each image left to right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise UserError(f"HorizontalFlip: p is {p}; it must lie in [0, 1].")
        self.p = p

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator, device=images.device) < self.p
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class Cutout(BatchTransform):
    """Black out one square with a side of ``size`` pixels at a random centre (arXiv 1708.04552).

    It may extend beyond the edge.
    """

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"Cutout: size is {size}; it must be at least 1 pixel.")
        self.size = size

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        device = images.device
        top = torch.randint(0, height, (batch, 1), generator=generator, device=device)
        left = torch.randint(0, width, (batch, 1), generator=generator, device=device)
        rows = torch.arange(height, device=device) - (top - self.size // 2)
        cols = torch.arange(width, device=device) - (left - self.size // 2)
        inside = ((rows >= 0) & (rows < self.size))[:, None, :, None] & (
            (cols >= 0) & (cols < self.size)
        )[:, None, None, :]
        return images.masked_fill(inside, 0)

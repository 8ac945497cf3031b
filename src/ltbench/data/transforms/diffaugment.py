"""DiffAugment (arXiv 2006.10738): the same kind of random change for real and generated images.

Unlike the other transforms these act on float images in [-1, 1] and let gradients through. Each
image has its own draw, from torch's generator of the images' device, which a training step seeds.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ltbench.errors import unknown_name


def brightness(images: Tensor) -> Tensor:
    """Add one number of [-0.5, 0.5] to all values of an image."""
    return images + _uniform(images) - 0.5


def saturation(images: Tensor) -> Tensor:
    """Scale the distance of each pixel's channels from their mean by a factor of [0, 2]."""
    grey = images.mean(1, keepdim=True)
    return torch.lerp(grey, images, 2 * _uniform(images))


def contrast(images: Tensor) -> Tensor:
    """Scale the distance of all values from the image's mean by a factor of [0.5, 1.5]."""
    grey = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(grey, images, 0.5 + _uniform(images))


def color(images: Tensor) -> Tensor:
    """Change brightness, saturation and contrast, in this order."""
    return contrast(saturation(brightness(images)))


def translation(images: Tensor, share: float = 0.125) -> Tensor:
    """Move an image by up to ``share`` of its side in each direction; zeros come in."""
    rows, cols = (
        torch.arange(side, device=images.device) - _whole(images, -reach, reach + 1)
        for side in images.shape[2:]
        for reach in (round(share * side),)
    )
    return _picked(images, rows, cols)


def cutout(images: Tensor, share: float = 0.5) -> Tensor:
    """Set a square of ``share`` of the side to zero, at a random centre; it may hang over."""
    height, width = images.shape[2:]
    inside = []
    for side in (height, width):
        size = round(share * side)
        first = _whole(images, 0, side + 1 - size % 2) - size // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= first) & (place < first + size))
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


DIFFAUGMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}
"""Every change by the name that a config gives it."""


def diffaugment(images: Tensor, policy: Sequence[str]) -> Tensor:
    """Apply the changes of ``policy`` in order.

    Args:
        images: (B, C, H, W) in [-1, 1].
        policy: Keys of :data:`DIFFAUGMENTS`.
    """
    for name in policy:
        images = DIFFAUGMENTS[name](images)
    return images


def check_policy(policy: Sequence[str]) -> None:
    """Refuse a policy with an unknown name.

    Raises:
        UserError: Naming the nearest valid name.
    """
    for name in policy:
        if name not in DIFFAUGMENTS:
            raise unknown_name("change of diffaugment", name, DIFFAUGMENTS)


def _uniform(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)


def _whole(images: Tensor, low: int, high: int) -> Tensor:
    return torch.randint(low, high, (len(images), 1), device=images.device)


def _picked(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return images (B, C, H, W) at rows (B, H) and cols (B, W); zeros beyond the edge."""
    height, width = images.shape[2:]
    seen = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
    which = torch.arange(len(images), device=images.device)[:, None, None]
    at = rows.clamp(0, height - 1)[:, :, None], cols.clamp(0, width - 1)[:, None, :]
    moved = images.permute(0, 2, 3, 1)[which, at[0], at[1]].permute(0, 3, 1, 2)
    return moved.masked_fill(~seen[:, None], 0.0)

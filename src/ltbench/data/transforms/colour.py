"""Changes of colour and sharpness of a whole batch on the device, each image with its own draw."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from typing_extensions import override

from ltbench.data.transforms.basic import BatchTransform, constants
from ltbench.errors import UserError


class ColorJitter(BatchTransform):
    """Change brightness, contrast, saturation and hue of each image, in this order.

    The first three are factors drawn from [1 - x, 1 + x], clipped at 0; the hue is turned by a
    share of the colour circle from [-x, x]. Unlike torchvision, the order is not random.

    Args:
        brightness: x of the brightness, at least 0.
        contrast: x of the contrast, at least 0.
        saturation: x of the saturation, at least 0.
        hue: x of the hue, 0 to 0.5; only of colour images.
        p: Probability that an image is changed at all.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5 or not 0 <= p <= 1:
            raise UserError(
                "ColorJitter: amounts must be at least 0, hue at most 0.5, p in [0, 1]."
            )
        self.amounts, self.p = (brightness, contrast, saturation, hue), p

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size, device = (5, len(images), 1, 1, 1), images.device
        draws = torch.rand(size, generator=generator, device=device)
        brightness, contrast, saturation, hue = (
            (2 * draw - 1) * amount for draw, amount in zip(draws, self.amounts, strict=False)
        )
        changed = images.float()
        changed = _blend(changed, torch.zeros_like(changed), brightness)
        grey = tv.rgb_to_grayscale(changed).round()
        changed = _blend(changed, grey.mean((1, 2, 3), keepdim=True), contrast)
        if images.shape[1] == 3:
            changed = _blend(changed, tv.rgb_to_grayscale(changed), saturation)
            changed = turn_hue(changed / 255, hue) * 255 if self.amounts[3] else changed
        changed = changed.round().to(torch.uint8)
        return torch.where(draws[4] < self.p, changed, images)


class Grayscale(BatchTransform):
    """Take the colour out of each image with probability ``p``."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = p

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand((len(images), 1, 1, 1), generator=generator, device=images.device)
        return torch.where(draws < self.p, tv.rgb_to_grayscale(images), images)


class GaussianBlur(BatchTransform):
    """Blur each image with probability ``p``, as SimCLR does (arXiv 2002.05709).

    Args:
        sigma: Smallest and largest standard deviation in pixels, above 0, drawn uniformly.
        p: Probability in [0, 1].
    """

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5) -> None:
        super().__init__()
        if not 0 < sigma[0] <= sigma[1] or not 0 <= p <= 1:
            raise UserError("GaussianBlur: sigma must be a rising pair above 0, and p in [0, 1].")
        self.sigma, self.p = sigma, p

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size = (2, len(images), 1, 1)
        share, chosen = torch.rand(size, generator=generator, device=images.device)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * share
        rows, columns = (_kernel(sigma, side)[:, None] for side in images.shape[-2:])
        blurred = (rows @ images.float() @ columns.mT).round_().to(torch.uint8)
        return torch.where((chosen < self.p)[:, None], blurred, images)


def _kernel(sigma: Tensor, side: int) -> Tensor:
    """Return the (B, side, side) matrices that blur a line, normalised at its ends."""
    pixels = torch.arange(side, device=sigma.device)
    weights = (-0.5 * ((pixels[:, None] - pixels) / sigma) ** 2).exp()
    return weights / weights.sum(2, keepdim=True)


def _blend(images: Tensor, other: Tensor, change: Tensor) -> Tensor:
    """Move ``images`` away from ``other`` by a share, or towards it if that is negative."""
    return (images + change.clamp_min(-1) * (images - other)).clamp(0, 255)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of (B, 3, H, W) RGB images in [0, 1] by a share of the circle, (B, 1, 1, 1).

    Value and saturation stay. Source: the HSV model, Smith 1978.
    """
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = value - low
    red, green, blue = (images / spread.clamp_min(1e-12)).chunk(3, 1)
    hue = torch.where(
        value == images[:, :1],
        green - blue,
        torch.where(value == images[:, 1:2], 2 + blue - red, 4 + red - green),
    )
    place = constants([5.0, 3.0, 1.0], images.device).view(1, 3, 1, 1)
    sextant = (place + hue + 6 * turn) % 6
    return value - spread * sextant.minimum(4 - sextant).clamp(0, 1)

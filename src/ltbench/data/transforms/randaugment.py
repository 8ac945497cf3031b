"""RandAugment of a whole batch on the device, each image with its own operations (1909.13719).

A batch is cut into one sub-batch for each operation, so that the loop runs over the operations and
never over images. The results are those of torchvision, of Pillow or of timm, which work on one
image at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from typing_extensions import override

from ltbench.data.transforms.basic import BatchTransform, constants, on_host
from ltbench.errors import UserError, unknown_name

_MAX_MAGNITUDE = 30
_CUTOUT_FILL = (125, 123, 114)  # about the mean colour of natural images
_TIMM_FILL = (124, 116, 104)  # ImageNet's mean
_BLACK = (0, 0, 0)

# Every operation takes (b, C, H, W) uint8 images and their magnitudes, (b, 1, 1, 1) float32.


def _colour(rgb: Sequence[int], images: Tensor) -> Tensor:
    """Return a colour as (C, 1, 1) uint8, grey for grey images."""
    colour = constants(rgb, images.device).to(torch.uint8).view(3, 1, 1)
    return colour if images.shape[1] == 3 else tv.rgb_to_grayscale(colour)


def _sample(
    images: Tensor, x: Tensor, y: Tensor, fill: Sequence[int] = _BLACK, bicubic: bool = False
) -> Tensor:
    """Fetch each pixel from column ``x`` and row ``y``, which broadcast to (b, 1, H, W)."""
    height, width = images.shape[-2:]
    columns, rows = x.round(), y.round()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    sampled = _bicubic(images, x, y) if bicubic else _fetch(images, columns, rows)
    return torch.where(inside, sampled, _colour(fill, images))


def _fetch(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Return the pixels at whole columns and rows; beyond the edge, those at it."""
    batch, channels, height, width = images.shape
    source = rows.long().clamp(0, height - 1) * width + columns.long().clamp(0, width - 1)
    source = source.expand(batch, channels, height, width)
    return images.flatten(2).gather(2, source.flatten(2)).view(source.shape)


def _bicubic(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate as Pillow's transform does: the slope is -1 at 1, levels are truncated."""
    exact = images.float()

    def line(rows: Tensor) -> Tensor:
        return _cubic(lambda columns: _fetch(exact, columns, rows), x)

    return _cubic(line, y).clamp(0, 255).to(torch.uint8)


def _cubic(fetch: Callable[[Tensor], Tensor], place: Tensor) -> Tensor:
    """Interpolate between the values that ``fetch`` returns for whole places."""
    if not place.is_floating_point():
        return fetch(place)
    first = place.floor()
    d = place - first
    before, near, far, after = (fetch(first + k) for k in (-1, 0, 1, 2))
    cubic = near - before + after - far
    square = 2 * (before - near) + far - after
    return near + d * (far - before + d * (square + d * cubic))


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns (W,) and rows (H, 1) of the pixels of ``images``."""
    height, width = images.shape[-2:]
    columns = torch.arange(width, device=images.device)
    return columns, torch.arange(height, device=images.device)[:, None]


def _shear_x(
    images: Tensor, slope: Tensor, fill: Sequence[int] = _BLACK, bicubic: bool = False
) -> Tensor:
    x, y = _pixels(images)  # the upper edge, y = -0.5, stays in place
    return _sample(images, x + slope * (y + 0.5), y, fill, bicubic)


def _shear_y(
    images: Tensor, slope: Tensor, fill: Sequence[int] = _BLACK, bicubic: bool = False
) -> Tensor:
    x, y = _pixels(images)
    return _sample(images, x, y + slope * (x + 0.5), fill, bicubic)


def _translate_x(
    images: Tensor,
    share: Tensor,
    fill: Sequence[int] = _BLACK,
    bicubic: bool = False,
    whole: Callable[[Tensor], Tensor] = torch.round,
) -> Tensor:
    x, y = _pixels(images)
    pixels = share * images.shape[-1]
    return _sample(images, x - (pixels if bicubic else whole(pixels)), y, fill, bicubic)


def _translate_y(
    images: Tensor,
    share: Tensor,
    fill: Sequence[int] = _BLACK,
    bicubic: bool = False,
    whole: Callable[[Tensor], Tensor] = torch.round,
) -> Tensor:
    x, y = _pixels(images)
    pixels = share * images.shape[-2]
    return _sample(images, x, y - (pixels if bicubic else whole(pixels)), fill, bicubic)


def _rotate(
    images: Tensor, degrees: Tensor, fill: Sequence[int] = _BLACK, bicubic: bool = False
) -> Tensor:
    x, y = _pixels(images)
    middle_x, middle_y = (x.numel() - 1) / 2, (y.numel() - 1) / 2
    x, y = x - middle_x, y - middle_y
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    columns, rows = cos * x - sin * y + middle_x, sin * x + cos * y + middle_y
    return _sample(images, columns, rows, fill, bicubic)


def _enhance(images: Tensor, degenerate: Tensor, change: Tensor) -> Tensor:
    """Move away from the degenerate image (``change`` > 0) or towards it (-1 is all the way)."""
    exact = images.float()
    return (exact + change * (exact - degenerate)).clamp(0, 255).to(torch.uint8)


def _brightness(images: Tensor, change: Tensor) -> Tensor:
    return _enhance(images, torch.zeros_like(images), change)


def _color(images: Tensor, change: Tensor) -> Tensor:
    return _enhance(images, tv.rgb_to_grayscale(images), change)


def _contrast(images: Tensor, change: Tensor) -> Tensor:
    grey = tv.rgb_to_grayscale(images).float()
    return _enhance(images, grey.mean((1, 2, 3), keepdim=True), change)


def _sharpness(images: Tensor, change: Tensor) -> Tensor:
    # torchvision's blur, the border as it is; its own sends a kernel to the device and waits.
    blurred = images.float()
    lines = blurred[..., :-2, :] + blurred[..., 1:-1, :] + blurred[..., 2:, :]
    sums = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]
    inner = blurred[..., 1:-1, 1:-1]
    inner.copy_((sums + 4 * inner).div_(13).round_())
    return _enhance(images, blurred, change)


def _posterize(
    images: Tensor, bits: Tensor, whole: Callable[[Tensor], Tensor] = torch.round
) -> Tensor:
    lowest = 2 ** (8 - whole(bits))
    return images & (256 - lowest).to(torch.uint8)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 255 - images, images)


def _solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    brighter = (images + amount.trunc()).clamp_max(255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


class Operation(NamedTuple):
    """What is done to images (b, C, H, W), and its magnitudes, which a sign may follow.

    Magnitudes (b, 1, 1, 1) go from ``mild`` (bin 0) to ``severe`` (the last bin).
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    mild: float = 0.0
    severe: float = 0.0
    signed: bool = False


Operations = dict[str, Operation]


def geometric(
    translation: float,
    whole: Callable[[Tensor], Tensor] = torch.round,
    **how: Any,  # noqa: ANN401
) -> Operations:
    """Return shears, translations and rotation.

    Args:
        translation: Largest translation, a share of the side.
        whole: How pixels of translation become whole, unless it is bicubic.
        **how: ``fill``, the colour outside the image, and whether to resample ``bicubic``.
    """
    move_x, move_y = (partial(each, whole=whole, **how) for each in (_translate_x, _translate_y))
    return {
        "ShearX": Operation(partial(_shear_x, **how), 0, 0.3, signed=True),  # slope
        "ShearY": Operation(partial(_shear_y, **how), 0, 0.3, signed=True),
        "TranslateX": Operation(move_x, 0, translation, signed=True),
        "TranslateY": Operation(move_y, 0, translation, signed=True),
        "Rotate": Operation(partial(_rotate, **how), 0, 30, signed=True),  # degrees
    }


def _enhancements(mild: float, severe: float, signed: bool = False) -> Operations:
    operations = {
        "Brightness": _brightness,
        "Color": _color,
        "Contrast": _contrast,
        "Sharpness": _sharpness,
    }
    return {name: Operation(each, mild, severe, signed) for name, each in operations.items()}


_PLAIN = {
    "AutoContrast": Operation(lambda images, _: tv.autocontrast(images)),
    "Equalize": Operation(lambda images, _: tv.equalize(images)),
}
INVERT = {"Invert": Operation(lambda images, _: 255 - images)}
IDENTITY = {"Identity": Operation(lambda images, _: images)}
TRANSLATION = 150 / 331  # of the side, as AutoAugment moves images of 331 pixels

SPACES = {
    "standard": {
        **IDENTITY,
        **_PLAIN,
        **geometric(TRANSLATION, whole=torch.trunc),
        **_enhancements(0, 0.9, signed=True),  # factor - 1
        "Posterize": Operation(_posterize, 8, 4),
        "Solarize": Operation(_solarize, 255, 0),
    },
    "fixmatch": {
        **IDENTITY,
        **_PLAIN,
        **geometric(0.3),
        **_enhancements(-0.05, -0.95),
        "Posterize": Operation(partial(_posterize, whole=torch.floor), 8, 4),
        "Solarize": Operation(_solarize, 256, 0),
    },
    "timm": {
        **_PLAIN,
        **INVERT,
        **geometric(0.45, fill=_TIMM_FILL, bicubic=True),
        **_enhancements(-0.9, 0.9),
        "Posterize": Operation(partial(_posterize, whole=torch.floor), 0, 4),
        "Solarize": Operation(lambda images, at: _solarize(images, at.floor()), 0, 256),
        "SolarizeAdd": Operation(_solarize_add, 0, 110),
    },
    "timm_increasing": {
        **_PLAIN,
        **INVERT,
        **geometric(0.45, fill=_TIMM_FILL, bicubic=True),
        **_enhancements(0, 0.9, signed=True),
        "Posterize": Operation(partial(_posterize, whole=torch.ceil), 4, 0),
        "Solarize": Operation(_solarize, 256, 0),
        "SolarizeAdd": Operation(_solarize_add, 0, 110),
    },
}
"""The operations of :class:`RandAugment` by space."""


def apply_operations(
    images: Tensor,
    operations: Sequence[Callable[[Tensor, Tensor], Tensor]],
    drawn: Tensor,
    magnitude: Tensor,
) -> Tensor:
    """Apply to each image the operations drawn for it.

    Args:
        images: (B, C, H, W) uint8.
        operations: Each takes (b, C, H, W) images and (b, 1, 1, 1) magnitudes.
        drawn: (turns, B), which operation an image takes in each turn; on the CPU, so that how
            many take one is known without a wait for the device.
        magnitude: (turns, B), and how strongly; on the device of the images.
    """
    images = images.clone()
    counts = (drawn[:, :, None] == torch.arange(len(operations))).sum(1).tolist()
    for turn, order in enumerate(drawn.argsort(1).to(images.device, non_blocking=True)):
        for operation, rows in zip(operations, order.split(counts[turn]), strict=True):
            if len(rows) > 0:
                chosen = images.index_select(0, rows)
                strength = magnitude[turn, rows, None, None, None]
                images.index_copy_(0, rows, operation(chosen, strength))
    return images


class RandAugment(BatchTransform):
    """Apply ``num_ops`` random operations in turn to each image (arXiv 1909.13719).

    Operations are drawn with replacement, all equally often. A shear, translation or rotation goes
    either way with probability 1/2; so does an enhancement (brightness, color, contrast,
    sharpness), except in the spaces ``fixmatch`` and ``timm``.

    The defaults are torchvision's. The strong view of the FixMatch family as released with CSST
    and SelMix is ``RandAugment(3, magnitude=None, space="fixmatch", cutout=0.5)``, followed by
    flip and crop. timm's ``rand-m9-mstd0.5-inc1`` (DeiT) is ``RandAugment(2, 27, "timm_increasing",
    p=0.5, magnitude_std=1.5)``: its magnitudes end at 10, not at 30.

    Args:
        num_ops: Operations in turn for each image, >= 0.
        magnitude: Bin 0 (mildest) to 30 (most severe) of each range, or None to draw the magnitude
            uniformly from the range each time.
        space: The operations and their ranges.
            ``standard``: 14, by nearest neighbours and black outside the image; slope 0.3, 150/331
            of the side in whole pixels (truncated), 30 degrees, factor 1 +- 0.9, 8 to 4 bits
            (rounded), threshold 255 to 0.
            ``fixmatch``: the same 14; translations up to 0.3 of the side, rounded to pixels,
            factors 0.95 to 0.05 (only ever less colour, contrast, ...), bits truncated, threshold
            256 to 0.
            ``timm_increasing``: timm's 15, which have no identity, but invert and "add below 128"
            (up to 110); bicubic, ImageNet's mean colour outside the image; translations up to
            0.45 of the side, 4 to 0 bits (rounded up), threshold 256 to 0.
            ``timm``: the same 15, with factors 0.1 to 1.9, 0 to 4 bits (truncated) and threshold 0
            to 256.
        p: Probability in [0, 1] that a drawn operation is applied at all.
        cutout: Afterwards paint one square with a side of v = U(0, ``cutout``) times the width
            around a point drawn uniformly from the image, in the grey (125, 123, 114); 0 paints
            none. As released with FixMatch's PyTorch ports, the square hanging over the left or
            upper edge is moved inside, while one over the right or lower edge is cut off.
        magnitude_std: Standard deviation of the magnitude, in bins; the result stays in [0, 30].

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int | None = 9,
        space: Literal["standard", "fixmatch", "timm", "timm_increasing"] = "standard",
        p: float = 1.0,
        cutout: float = 0.0,
        magnitude_std: float = 0.0,
    ) -> None:
        super().__init__()
        if num_ops < 0:
            raise UserError(f"num_ops of RandAugment is {num_ops}; it must be at least 0.")
        if space not in SPACES:
            raise unknown_name("space of RandAugment", space, SPACES)
        limits = (
            ("magnitude", magnitude or 0, _MAX_MAGNITUDE),
            ("magnitude_std", magnitude_std, _MAX_MAGNITUDE),
            ("p", p, 1),
            ("cutout", cutout, 1),
        )
        for name, value, most in limits:
            if not 0 <= value <= most:
                raise UserError(f"{name} of RandAugment is {value}; it must lie in [0, {most}].")
        if magnitude is None and magnitude_std:
            raise UserError("RandAugment: magnitude_std needs a magnitude to deviate from.")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.space = space
        self.p = p
        self.cutout = cutout
        self.magnitude_std = magnitude_std

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size, device = (self.num_ops, len(images)), images.device
        host = on_host(generator)
        operations = [*IDENTITY.values(), *SPACES[self.space].values()]
        drawn = torch.randint(len(operations) - 1, size, generator=host) + 1
        drawn = drawn * (torch.rand(size, generator=host) < self.p)  # the first is the identity
        negative = torch.randint(2, size, generator=generator, device=device)
        if self.magnitude is None:
            level = torch.rand(size, generator=generator, device=device)
        else:
            level = torch.full(size, self.magnitude / _MAX_MAGNITUDE, device=device)
        if self.magnitude_std:
            noise = torch.randn(size, generator=generator, device=device)
            level = (level + noise * (self.magnitude_std / _MAX_MAGNITUDE)).clamp(0, 1)
        ranges = torch.tensor([each[1:] for each in operations])
        mild, severe, signed = ranges[drawn].to(device, non_blocking=True).unbind(-1)
        magnitude = (mild + (severe - mild) * level) * (1 - 2 * negative * signed)

        images = apply_operations(images, [each.apply for each in operations], drawn, magnitude)
        return self._cut(images, generator) if self.cutout else images

    def _cut(self, images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[-2:]
        size = (3, len(images), 1, 1, 1)
        draw, column, row = torch.rand(size, generator=generator, device=images.device)
        side = draw * (self.cutout * width)

        def within(places: Tensor, centre: Tensor) -> Tensor:
            first = (centre - side / 2).clamp_min(0).floor()
            last = (first + side).floor()  # painted as well
            return torch.logical_and(places >= first, places <= last)

        x, y = _pixels(images)
        inside = within(x, column * width) & within(y, row * height)
        return torch.where(inside, _colour(_CUTOUT_FILL, images), images)

"""RandAugment of a whole batch on the device, each image with its own operations (1909.13719).

A batch is cut into one sub-batch for each operation, so that the loop runs over the 14 operations
and never over images. The results are those of :class:`torchvision.transforms.v2.RandAugment`,
which works on one image at a time: nearest neighbour, black outside the image.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from typing_extensions import override

from ltbench.data.transforms.basic import BatchTransform, constants, on_host
from ltbench.errors import UserError, unknown_name

_MAX_MAGNITUDE = 30
_CUTOUT_FILL = (125, 123, 114)  # about the mean colour of natural images

# Every operation takes (b, C, H, W) uint8 images and their magnitudes, (b, 1, 1, 1) float32.


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Fetch each pixel from column ``x`` and row ``y``, which broadcast to (b, 1, H, W)."""
    batch, channels, height, width = images.shape
    columns, rows = x.round().long(), y.round().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    source = (rows * width + columns).where(inside, 0).expand(batch, channels, height, width)
    return images.flatten(2).gather(2, source.flatten(2)).view(source.shape) * inside


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns (W,) and rows (H, 1) of the pixels of ``images``."""
    height, width = images.shape[-2:]
    columns = torch.arange(width, device=images.device)
    return columns, torch.arange(height, device=images.device)[:, None]


def _shear_x(images: Tensor, slope: Tensor) -> Tensor:
    x, y = _pixels(images)
    return _sample(images, x + slope * (y + 0.5), y)  # the upper edge, y = -0.5, stays in place


def _shear_y(images: Tensor, slope: Tensor) -> Tensor:
    x, y = _pixels(images)
    return _sample(images, x, y + slope * (x + 0.5))


def _translate_x(images: Tensor, share: Tensor) -> Tensor:
    x, y = _pixels(images)
    return _sample(images, x - (share * images.shape[-1]).trunc(), y)


def _translate_y(images: Tensor, share: Tensor) -> Tensor:
    x, y = _pixels(images)
    return _sample(images, x, y - (share * images.shape[-2]).trunc())


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    x, y = _pixels(images)
    middle_x, middle_y = (x.numel() - 1) / 2, (y.numel() - 1) / 2
    x, y = x - middle_x, y - middle_y
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return _sample(images, cos * x - sin * y + middle_x, sin * x + cos * y + middle_y)


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


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    lowest = 2 ** (8 - bits.round())
    return images & (256 - lowest).to(torch.uint8)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 255 - images, images)


class _Range(NamedTuple):
    """Magnitudes from the mildest (bin 0) to the most severe (bin 30), perhaps with a sign."""

    mild: float = 0.0
    severe: float = 0.0
    signed: bool = False


class Operation(NamedTuple):
    """What is done to images (b, C, H, W) with magnitudes (b, 1, 1, 1), and their ranges."""

    apply: Callable[[Tensor, Tensor], Tensor]
    standard: _Range = _Range()
    fixmatch: _Range = _Range()


_SHEAR = _Range(0, 0.3, signed=True)  # slope
_ROTATE = _Range(0, 30, signed=True)  # degrees
_TRANSLATE = _Range(0, 150 / 331, signed=True), _Range(0, 0.3, signed=True)  # of the side
_ENHANCE = _Range(0, 0.9, signed=True), _Range(-0.05, -0.95)  # factor - 1
_BITS = _Range(8, 4)

OPERATIONS = {
    "Identity": Operation(lambda images, _: images),
    "AutoContrast": Operation(lambda images, _: tv.autocontrast(images)),
    "Equalize": Operation(lambda images, _: tv.equalize(images)),
    "ShearX": Operation(_shear_x, _SHEAR, _SHEAR),
    "ShearY": Operation(_shear_y, _SHEAR, _SHEAR),
    "TranslateX": Operation(_translate_x, *_TRANSLATE),
    "TranslateY": Operation(_translate_y, *_TRANSLATE),
    "Rotate": Operation(_rotate, _ROTATE, _ROTATE),
    "Brightness": Operation(_brightness, *_ENHANCE),
    "Color": Operation(_color, *_ENHANCE),
    "Contrast": Operation(_contrast, *_ENHANCE),
    "Sharpness": Operation(_sharpness, *_ENHANCE),
    "Posterize": Operation(_posterize, _BITS, _BITS),
    "Solarize": Operation(_solarize, _Range(255, 0), _Range(256, 0)),
}


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

    Operations are drawn with replacement, all 14 equally often: identity, autocontrast, equalize,
    shear and translate in x and y, rotate, brightness, color, contrast, sharpness, posterize,
    solarize. A shear, translation or rotation, and in the standard space an enhancement, goes
    either way with probability 1/2.

    The defaults are torchvision's. The strong view of the FixMatch family as released with CSST
    and SelMix is ``RandAugment(3, magnitude=None, space="fixmatch", cutout=0.5)``, followed by
    flip and crop.

    Args:
        num_ops: Operations in turn for each image, >= 0.
        magnitude: Bin 0 (mildest) to 30 (most severe) of each range, or None to draw the magnitude
            uniformly from the range each time (bits are rounded afterwards).
        space: The ranges. ``standard``: slope 0.3, 150/331 of the side, 30 degrees, factor
            1 +- 0.9, 8 to 4 bits, threshold 255 to 0. ``fixmatch``: translations up to 0.3 of the
            side, factors 0.95 to 0.05 (only ever less colour, contrast, ...), threshold 256 to 0.
        p: Probability in [0, 1] that a drawn operation is applied at all.
        cutout: Afterwards paint one square with a side of U(0, ``cutout``) times the width, centred
            anywhere in the image, in the grey (125, 123, 114); 0 paints none.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int | None = 9,
        space: Literal["standard", "fixmatch"] = "standard",
        p: float = 1.0,
        cutout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_ops < 0:
            raise UserError(f"num_ops of RandAugment is {num_ops}; it must be at least 0.")
        if space not in ("standard", "fixmatch"):
            raise unknown_name("space of RandAugment", space, ("standard", "fixmatch"))
        limits = (("magnitude", magnitude or 0, _MAX_MAGNITUDE), ("p", p, 1), ("cutout", cutout, 1))
        for name, value, most in limits:
            if not 0 <= value <= most:
                raise UserError(f"{name} of RandAugment is {value}; it must lie in [0, {most}].")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.space = space
        self.p = p
        self.cutout = cutout

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size, device = (self.num_ops, len(images)), images.device
        host = on_host(generator)
        drawn = torch.randint(len(OPERATIONS), size, generator=host)
        drawn = drawn * (torch.rand(size, generator=host) < self.p)  # the first is the identity
        negative = torch.randint(2, size, generator=generator, device=device)
        if self.magnitude is None:
            level = torch.rand(size, generator=generator, device=device)
        else:
            level = torch.full(size, self.magnitude / _MAX_MAGNITUDE, device=device)
        operations = OPERATIONS.values()
        ranges = torch.tensor([getattr(each, self.space) for each in operations])
        mild, severe, signed = ranges[drawn].to(device, non_blocking=True).unbind(-1)
        magnitude = (mild + (severe - mild) * level) * (1 - 2 * negative * signed)

        images = apply_operations(images, [each.apply for each in operations], drawn, magnitude)
        return self._cut(images, generator) if self.cutout else images

    def _cut(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = images.shape
        size = (3, batch, 1, 1, 1)
        side, column, row = torch.rand(size, generator=generator, device=images.device)
        x, y = _pixels(images)
        away = (x + 0.5 - column * width).abs().maximum((y + 0.5 - row * height).abs())
        inside = away < side * (self.cutout * width / 2)
        fill = constants(_CUTOUT_FILL, images.device).to(torch.uint8).view(3, 1, 1)
        return torch.where(inside, fill if channels == 3 else tv.rgb_to_grayscale(fill), images)

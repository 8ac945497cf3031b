"""From an image file of any size and shape to a square of uint8 pixels."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ltbench.data.loading import note
from ltbench.errors import UserError
from ltbench.untrusted import open_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")  # no others are even tried
ATTEMPTS = 10  # boxes drawn for an image before the centre is used


@dataclass(frozen=True)
class Decoding:
    """How image files of any shape become squares of the image size.

    Evaluation scales the shorter side to ``resize`` and crops the centre. Training does the same,
    or crops a new box of random area, shape and place each time (arXiv 1409.4842). If the box is
    large enough, a JPEG file is decoded at a half, a quarter or an eighth of its size, which
    changes the pixels of photographs by less than 2 of 255 on average; never in evaluation.

    Args:
        resize: Pixels of the shorter side before the centre is cropped; default: the image size.
        random_crop: Smallest and largest share of the image's area in training, [0.08, 1] for
            ImageNet; default: the centre, as in evaluation.
        ratio: Smallest and largest width over height of the box, drawn uniformly in its logarithm.
        interpolation: How pixels are resampled, with antialiasing.
        reduced: Whether JPEG files may be decoded at a reduced size.

    Raises:
        UserError: A share or ratio is out of range.
    """

    resize: int | None = None
    random_crop: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    reduced: bool = True

    def __post_init__(self) -> None:
        least, greatest = self.random_crop or (1, 1)
        if not 0 < least <= greatest <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(
                f"data.decoding: random_crop {self.random_crop} and ratio {self.ratio} must be "
                "pairs of positive numbers, the smaller first, and random_crop at most 1."
            )

    def box(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Draw the left, upper, right and lower edge of the box to crop from an image.

        The first of ten boxes that fits is used; if none does, the largest centred one.
        """
        least, greatest = self.random_crop or (1, 1)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        draws = torch.rand(ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist()
        for share, shape, across, down in draws:
            area = (least + (greatest - least) * share) * width * height
            ratio = math.exp(low + (high - low) * shape)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 1 <= w <= width and 1 <= h <= height:
                left, upper = int(across * (width - w + 1)), int(down * (height - h + 1))
                return left, upper, left + w, upper + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h


@contextmanager
def reading(path: Path) -> Iterator[Image.Image]:
    """Open an image with 8-bit channels; an error inside the block names the file.

    Raises:
        UserError: The file cannot be decoded.
    """
    note(path)
    try:
        with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):  # convert("RGB") would cut these off at 255
                raise ValueError(f"its pixels are of type {image.mode}, not 8 bits per channel")
            yield image
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        raise UserError(
            f"cannot read the image {path} ({error}).\nReplace or remove it, or leave out such "
            "images with --data.on_bad_image skip."
        ) from error


def is_readable(path: Path) -> bool:
    """Whether an image can be decoded from its first pixel to its last."""
    try:
        with reading(path) as image:
            image.convert("RGB")
    except UserError:
        return False
    return True


def decode(path: Path, channels: int, size: int, how: Decoding = Decoding()) -> Tensor:
    """Read the centre of an image, (channels, size, size) uint8; 1 channel is grey, 3 are RGB.

    Raises:
        UserError: The file cannot be decoded.
    """
    with reading(path) as image:
        return square(image, channels, size, how)


def square(image: Image.Image, channels: int, size: int, how: Decoding = Decoding()) -> Tensor:
    """Return the centre of an image, (channels, size, size) uint8; 1 channel is grey, 3 are RGB."""
    return fit(_pixels(image.convert(_mode(channels))), size, how)


def decode_crops(
    path: Path, channels: int, size: int, how: Decoding, generator: torch.Generator, views: int
) -> Tensor:
    """Read an image once and crop ``views`` random boxes, (views, channels, size, size) uint8.

    Raises:
        UserError: The file cannot be decoded.
    """
    with reading(path) as image:
        width, height = image.size
        boxes = [how.box(width, height, generator) for _ in range(views)]
        # Decoded at 1 / n, the shortest side of all boxes still has `size` pixels.
        side = min(min(right - left, lower - upper) for left, upper, right, lower in boxes)
        if how.reduced and side >= 2 * size:
            image.draft(None, (math.ceil(width * size / side), math.ceil(height * size / side)))
        if image.width < width:  # edges lie between its pixels, which Pillow resamples alike
            whole, kernel = image.convert(_mode(channels)), Resampling[how.interpolation.upper()]
            factor = 2 ** round(math.log2(width / image.width))  # the sizes were rounded up
            places = [tuple(edge / factor for edge in box) for box in boxes]
            squares = [whole.resize((size, size), kernel, place) for place in places]
            return torch.stack([_pixels(square) for square in squares])
        pixels = [_pixels(image.crop(box).convert(_mode(channels))) for box in boxes]
    kernel = InterpolationMode(how.interpolation)
    return torch.stack([F.resize(crop, [size, size], kernel, antialias=True) for crop in pixels])


def fit(images: Tensor, size: int | None, how: Decoding = Decoding()) -> Tensor:
    """Bring (..., H, W) uint8 images to squares of `size` pixels, or leave them for None.

    The shorter side is scaled with antialiasing, to `size` or ``how.resize``, then the centre is
    cut out.
    """
    if size is None:
        return images
    kernel = InterpolationMode(how.interpolation)
    resized = F.resize(images, [how.resize or size], interpolation=kernel, antialias=True)
    square: Tensor = F.center_crop(resized, [size, size])
    return square


def _mode(channels: int) -> str:
    return "RGB" if channels == 3 else "L"


def _pixels(image: Image.Image) -> Tensor:
    pixels = np.array(image)
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)

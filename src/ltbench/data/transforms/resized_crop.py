"""Random resized crops of a whole batch on the device (arXiv 1409.4842), each image with its own.

Resampling is linear and works on rows and columns apart, so the crops of a batch, each of its own
size, are two batched matrix products. The kernel is the bicubic one of Pillow, antialiased.
"""

import math

import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError

ATTEMPTS = 10  # boxes drawn for an image before the largest is used


class RandomResizedCrop(BatchTransform):
    """Crop a box of random area and shape, and resize it to a square of ``size`` pixels.

    The defaults are those of ImageNet training, and of torchvision. The first of ten drawn boxes
    that fits is used; if none does, the largest centred one.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height, drawn uniformly in its logarithm.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        if size < 1 or not 0 < scale[0] <= scale[1] or not 0 < ratio[0] <= ratio[1]:
            raise UserError(
                f"RandomResizedCrop: size {size}, scale {scale}, ratio {ratio}: give a positive "
                "size, and scale and ratio as pairs of positive numbers, the smaller first."
            )
        self.size, self.scale, self.ratio = size, scale, ratio

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        top, left, height, width = self._boxes(images, generator)
        rows = resampling(top, height, images.shape[2], self.size)
        columns = resampling(left, width, images.shape[3], self.size)
        resized = rows[:, None] @ images.float() @ columns[:, None].mT
        return resized.round_().clamp_(0, 255).to(torch.uint8)

    def _boxes(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw top, left, height and width of each image's box, (B,) each."""
        batch, _, full_height, full_width = images.shape
        size = (4, ATTEMPTS, batch)
        share, shape, down, right = torch.rand(size, generator=generator, device=images.device)
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * share) * full_height * full_width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * shape).exp()
        height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        fits = (height >= 1) & (height <= full_height) & (width >= 1) & (width <= full_width)
        first = fits.int().argmax(0, keepdim=True)
        fitting = fits.any(0)

        def chosen(drawn: Tensor, otherwise: int) -> Tensor:
            return torch.where(fitting, drawn.gather(0, first)[0], otherwise)

        height = chosen(height, min(full_height, round(full_width / self.ratio[0])))
        width = chosen(width, min(full_width, round(full_height * self.ratio[1])))
        free_down, free_right = full_height - height, full_width - width
        top = torch.where(fitting, (down[0] * (free_down + 1)).floor(), (free_down / 2).round())
        left = torch.where(fitting, (right[0] * (free_right + 1)).floor(), (free_right / 2).round())
        return top, left, height, width


def resampling(start: Tensor, length: Tensor, size: int, new_size: int) -> Tensor:
    """Return the matrices that resample a stretch of each line, (B, new_size, size) float32.

    Args:
        start: First pixel of the stretch in each of B lines, (B,).
        length: Pixels in it, (B,).
        size: Pixels of a whole line.
        new_size: Pixels that it is resampled to.
    """
    start, length = start.float().view(-1, 1, 1), length.float().view(-1, 1, 1)
    step = length / new_size
    centres = start + step * (torch.arange(new_size, device=start.device)[:, None] + 0.5)
    pixels = torch.arange(size, device=start.device) + 0.5
    inside = (pixels > start) & (pixels < start + length)
    weights = _cubic((pixels - centres) / step.clamp_min(1)) * inside
    return weights / weights.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Evaluate the cubic convolution kernel with slope -1/2 at 1; it is 0 from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))

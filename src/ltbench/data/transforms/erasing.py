"""Random erasing of a whole batch on the device (arXiv 1708.04896), each image with its own box."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.transforms.basic import BatchTransform, constants
from ltbench.errors import UserError

ATTEMPTS = 10  # boxes drawn for an image before it is left unchanged
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class RandomErasing(BatchTransform):
    """Fill a random box with noise, drawn for each pixel and channel.

    The noise is normal with the mean and standard deviation of natural images, clipped to black
    and white. The first of ten drawn boxes that is smaller than the image is used.

    Args:
        p: Probability in [0, 1] that an image is erased.
        area: Smallest and largest share of the image's area.
        ratio: Smallest and largest height over width, drawn uniformly in its logarithm.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        p: float = 0.25,
        area: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1 or not 0 < area[0] <= area[1] or not 0 < ratio[0] <= ratio[1]:
            raise UserError(
                f"RandomErasing: p {p}, area {area}, ratio {ratio}: give p in [0, 1], and area "
                "and ratio as pairs of positive numbers, the smaller first."
            )
        self.p, self.area, self.ratio = p, area, ratio

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = images.shape
        device = images.device
        size = (4, ATTEMPTS, batch)
        share, shape, down, right = torch.rand(size, generator=generator, device=device)
        area = (self.area[0] + (self.area[1] - self.area[0]) * share) * height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * shape).exp()
        box_height, box_width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (box_height < height) & (box_width < width)
        first = fits.int().argmax(0, keepdim=True)
        box_height, box_width = (
            side.gather(0, first)[0][:, None] for side in (box_height, box_width)
        )
        top = (down[0, :, None] * (height - box_height + 1)).floor()
        left = (right[0, :, None] * (width - box_width + 1)).floor()
        rows, columns = (torch.arange(side, device=device) for side in (height, width))
        erased = torch.rand(batch, generator=generator, device=device) < self.p
        in_rows = (rows >= top) & (rows < top + box_height) & (erased & fits.any(0))[:, None]
        in_columns = (columns >= left) & (columns < left + box_width)
        inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        mean, std = (constants(v, device).view(-1, 1, 1) for v in (_MEAN, _STD))
        if channels == 1:
            mean, std = mean.mean(0), std.mean(0)
        noise = torch.randn(images.shape, generator=generator, device=device)
        noise = (255 * (mean + std * noise)).round().clamp(0, 255).to(torch.uint8)
        return torch.where(inside, noise, images)

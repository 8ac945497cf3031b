"""Batched resized crops and erasing against torchvision's single images, and their distribution."""

import math

import pytest
import torch
from data_support import generator
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ltbench.data.transforms.basic import BatchTransform
from ltbench.data.transforms.erasing import RandomErasing
from ltbench.data.transforms.resized_crop import RandomResizedCrop, resampling
from ltbench.errors import UserError


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(7))


@pytest.mark.parametrize("transform", [RandomResizedCrop(12), RandomErasing(0.5)])
def test_draws_come_from_the_generator_alone(transform: BatchTransform) -> None:
    images = noise(32, 3, 12, 12)
    state, before = torch.get_rng_state(), images.clone()
    first, again = (transform(images, generator(3)) for _ in range(2))
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, transform(images, generator(4)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [9, 24, 56])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 31)])
def test_a_crop_is_torchvisions(size: int, shape: tuple[int, int, int]) -> None:
    images, transform = noise(48, *shape), RandomResizedCrop(size)
    crops = transform(images, generator(5))
    boxes = torch.stack(transform._boxes(images, generator(5)), 1).int().tolist()
    assert len(set(map(tuple, boxes))) > 40  # each image has its own
    for image, crop, (top, left, height, width) in zip(images, crops, boxes, strict=True):
        cut = image[:, top : top + height, left : left + width]
        assert cut.shape[1:] == (height, width)  # the box lies within the image
        expected = tv.resize(
            cut.float(), [size, size], tv.InterpolationMode.BICUBIC, antialias=True
        )
        assert torch.allclose(crop.float(), expected.round().clamp(0, 255), atol=1)


def test_a_whole_image_comes_back_from_seven_times_its_size() -> None:
    """DeiT-LT's 32 -> 224: the centre of each block of 7 is the pixel itself."""
    images = noise(2, 3, 32, 32)
    matrix = resampling(torch.zeros(2), torch.full((2,), 32), 32, 224)
    large = (matrix[:, None] @ images.float() @ matrix[:, None].mT).round().clamp(0, 255)
    assert torch.equal(large[:, :, 3::7, 3::7].to(torch.uint8), images)


def test_crops_have_the_areas_and_shapes_that_were_asked_for() -> None:
    transform = RandomResizedCrop(8, scale=(0.2, 0.6), ratio=(0.5, 2))
    images = torch.zeros(5000, 1, 100, 100, dtype=torch.uint8)
    top, left, height, width = transform._boxes(images, generator())
    share, ratio = height * width / 1e4, width / height
    assert share.min() > 0.18
    assert share.max() < 0.62
    assert share.mean() == pytest.approx(0.4, abs=0.02)
    assert ratio.log().mean() == pytest.approx(0, abs=0.03)
    assert ratio.log().abs().max() < math.log(2) + 0.05
    assert ((top + height <= 100) & (left + width <= 100) & (top >= 0) & (left >= 0)).all()
    free = height < 80
    assert (top / (100 - height))[free].mean() == pytest.approx(0.5, abs=0.03)


def test_where_no_box_fits_the_largest_centred_one_is_taken() -> None:
    images = torch.zeros(4, 1, 10, 90, dtype=torch.uint8)
    boxes = RandomResizedCrop(8, scale=(1, 1))._boxes(images, generator())
    assert torch.stack(boxes, 1).tolist() == [[0, 38, 10, 13]] * 4


def test_erasing_fills_one_box_of_noise() -> None:
    images = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
    erased = RandomErasing(p=0.25)(images, generator())
    changed = (erased > 0).any(1)
    hit = changed.flatten(1).any(1)
    assert hit.float().mean() == pytest.approx(0.25, abs=0.03)
    shares = []
    for mask in changed[hit]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.9  # all but what the noise left black
        shares.append(box.numel() / mask.numel())
    assert min(shares) > 0.01
    assert max(shares) < 0.36
    inside = erased.float().permute(0, 2, 3, 1)[changed] / 255
    assert inside.mean(0).tolist() == pytest.approx([0.485, 0.456, 0.406], abs=0.03)
    assert inside.std(0).tolist() == pytest.approx([0.229, 0.224, 0.225], abs=0.03)


def test_erasing_with_p_0_and_of_grey_images() -> None:
    images = noise(64, 1, 8, 8)
    assert torch.equal(RandomErasing(p=0)(images, generator()), images)
    erased = RandomErasing(p=1)(images, generator())
    assert (erased != images).flatten(1).any(1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
        lambda: RandomErasing(p=2),
        lambda: RandomErasing(ratio=(0, 1)),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: object) -> None:
    with pytest.raises(UserError, match="Random"):
        wrong()  # type: ignore[operator]

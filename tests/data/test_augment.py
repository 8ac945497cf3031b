"""Batched augmentation against slow per-image oracles, and its distribution."""

import pytest
import torch
from data_support import generator
from torch import Tensor
from torch.nn import functional as F

from ltbench.data.transforms.basic import BatchTransform, Cutout, HorizontalFlip, RandomCrop


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=generator(7))


@pytest.mark.parametrize("transform", [RandomCrop(4), HorizontalFlip(), Cutout(6)])
def test_kind_is_kept_and_draws_come_from_the_generator_alone(
    transform: BatchTransform, images: Tensor
) -> None:
    state = torch.get_rng_state()
    before = images.clone()
    first, again = (transform(images, generator(3)) for _ in range(2))
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, transform(images, generator(4)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_is_a_window_of_the_padded_image(images: Tensor) -> None:
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, crop in zip(padded, RandomCrop(2)(images, generator()), strict=True):
        windows = {
            (top, left): image[:, top : top + 12, left : left + 10]
            for top in range(5)
            for left in range(5)
        }
        matches = [place for place, window in windows.items() if torch.equal(window, crop)]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) > 15  # each image has its own draw


def test_crop_offsets_are_uniform() -> None:
    marked = torch.zeros(20_000, 1, 9, 9, dtype=torch.uint8)
    marked[:, :, 4, 4] = 1
    where = RandomCrop(2)(marked, generator()).float().mean(0)[0]
    assert torch.allclose(where[2:7, 2:7], torch.full((5, 5), 1 / 25), atol=0.006)
    assert where.sum() == pytest.approx(1, abs=1e-4)


def test_flip_mirrors_about_half(images: Tensor) -> None:
    flipped = HorizontalFlip()(images, generator())
    same = [torch.equal(a, b) for a, b in zip(images, flipped, strict=True)]
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(images, flipped, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48
    assert torch.equal(HorizontalFlip(p=0)(images, generator()), images)
    assert torch.equal(HorizontalFlip(p=1)(images, generator()), images.flip(-1))


def test_cutout_blackens_one_square_that_may_hang_over(images: Tensor) -> None:
    cut = Cutout(6)(images, generator())
    areas = []
    for before, after in zip(images, cut, strict=True):
        black = (after == 0).all(0)
        rows, cols = black.any(1).nonzero(), black.any(0).nonzero()
        box = black[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        assert box.all()
        assert max(box.shape) <= 6
        assert torch.equal(after[:, ~black], before[:, ~black])
        areas.append(box.numel())
    assert max(areas) == 36
    assert min(areas) < 36

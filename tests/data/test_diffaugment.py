import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ltbench.data.transforms.diffaugment import (
    DIFFAUGMENTS,
    brightness,
    check_policy,
    contrast,
    cutout,
    diffaugment,
    saturation,
    translation,
)
from ltbench.errors import UserError

POLICY = ["color", "translation", "cutout"]


@pytest.fixture
def images():
    return torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_draws_come_from_the_seed_of_the_step(images):
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(diffaugment(images, POLICY))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_each_image_has_its_own_draw(images):
    same = images[:1].expand(50, -1, -1, -1)
    for name in POLICY:
        assert len(torch.unique(DIFFAUGMENTS[name](same).flatten(1), dim=0)) > 5, name


@pytest.mark.parametrize("policy", [[], POLICY, *([name] for name in POLICY)])
def test_gradients_pass_and_shapes_stay(images, policy):
    images = images.clone().requires_grad_()
    found = diffaugment(images, policy)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    found.square().sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    if not policy:
        assert found is images


def test_brightness_adds_one_number_an_image(images):
    shift = (brightness(images) - images).flatten(1)
    assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-6, rtol=0)
    assert shift.min() >= -0.5
    assert shift.max() <= 0.5
    assert shift[:, 0].std() > 0.25  # 0.289 of a uniform draw


def test_saturation_keeps_each_pixels_mean(images):
    found = saturation(images)
    assert_close(found.mean(1), images.mean(1), atol=1e-6, rtol=0)
    factor = (found - found.mean(1, True)) / (images - images.mean(1, True))
    factor = factor.flatten(1).median(1).values
    assert factor.min() >= 0
    assert factor.max() <= 2
    assert_close(factor.mean(), torch.tensor(1.0), atol=0.15, rtol=0)


def test_contrast_keeps_each_images_mean(images):
    found = contrast(images)
    assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-6, rtol=0)
    factor = found.flatten(1).std(1) / images.flatten(1).std(1)
    assert factor.min() >= 0.5
    assert factor.max() <= 1.5


def test_translation_moves_by_at_most_an_eighth_and_brings_in_zeros(images):
    found = translation(images)
    shifts = set()
    for image, moved in zip(images, found, strict=True):
        matches = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(moved, shifted(image, dy, dx))
        ]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) == 25


def shifted(image, dy, dx):
    size = image.shape[-1]
    padded = F.pad(image, (2, 2, 2, 2))
    return padded[:, 2 - dy : 2 - dy + size, 2 - dx : 2 - dx + size]


def test_cutout_sets_one_square_to_zero(images):
    gone = (cutout(images + 2) == 0).all(1)  # no other pixel is zero
    assert gone.any(2).sum(1).max() == gone.any(1).sum(1).max() == 8
    for mask in gone[:50]:
        rows, cols = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & cols[None])
        assert rows.sum() >= 4


def test_a_wrong_name_is_refused():
    with pytest.raises(UserError, match="Did you mean 'color'"):
        check_policy(["colour"])

"""Batched colour changes and blur, and AutoAugment's policies, against torchvision."""

import numpy as np
import pytest
import torch
from data_support import generator
from PIL import Image
from torchvision.transforms import AutoAugment as Policies
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms.v2 import functional as tv

from ltbench.data.transforms.autoaugment import _OPERATIONS, AutoAugment
from ltbench.data.transforms.colour import ColorJitter, GaussianBlur, Grayscale, turn_hue
from ltbench.errors import UserError

BATCH = 12


@pytest.fixture
def images():
    coarse = torch.randint(0, 256, (BATCH, 3, 5, 6), generator=generator(7)).to(torch.uint8)
    return tv.resize(coarse, [25, 30], antialias=True)


def drawn(amount, row, seed=0):
    draws = torch.rand((5, BATCH, 1, 1, 1), generator=generator(seed))[row].flatten()
    return ((2 * draws - 1) * amount).tolist()


@pytest.mark.parametrize(
    ("row", "name", "adjust"),
    [
        (0, "brightness", tv.adjust_brightness),
        (1, "contrast", tv.adjust_contrast),
        (2, "saturation", tv.adjust_saturation),
    ],
)
@pytest.mark.parametrize("amount", [0.4, 1.5])
def test_each_image_is_adjusted_by_its_own_factor(row, name, adjust, amount, images):
    out = ColorJitter(**{name: amount})(images, generator())
    assert out.dtype == torch.uint8
    for image, change, result in zip(images, drawn(amount, row), out, strict=True):
        expected = adjust(image, max(1 + change, 0.0))
        assert (result.int() - expected.int()).abs().max() <= 2  # torchvision cuts off


def test_the_hue_is_turned_as_torchvision_turns_it(images):
    pixels = images.float() / 255
    for turn in (-0.5, -0.2, 0.0, 0.1, 0.45):
        expected = tv.adjust_hue(pixels, turn)
        turned = turn_hue(pixels, torch.full((BATCH, 1, 1, 1), turn))
        assert torch.allclose(turned, expected, atol=1e-5)
    out = ColorJitter(hue=0.3)(images, generator())
    for image, change, result in zip(images, drawn(0.3, 3), out, strict=True):
        expected = tv.adjust_hue(image.float() / 255, change) * 255
        assert (result - expected).abs().max() <= 0.51


def test_grey_images_have_no_colour_to_change(images):
    grey = images[:, :1]
    both = ColorJitter(0.4, 0.4, 0.9, 0.4)(grey, generator())
    assert torch.equal(both, ColorJitter(0.4, 0.4)(grey, generator()))
    assert torch.equal(Grayscale(1.0)(grey, generator()), grey)
    assert not torch.equal(turn_hue(images / 255, torch.tensor(0.3)), images / 255)
    same = grey.expand(-1, 3, -1, -1) / 255
    assert torch.allclose(turn_hue(same, torch.tensor(0.3)), same)


def test_grayscale_is_torchvisions(images):
    assert torch.equal(Grayscale(1.0)(images, generator()), tv.rgb_to_grayscale(images, 3))


@pytest.mark.parametrize("kind", [Grayscale, GaussianBlur, lambda p: ColorJitter(0.5, p=p)])
def test_a_share_of_the_images_is_changed(kind, images):
    many = images.repeat(50, 1, 1, 1)
    changed = (kind(p=0.3)(many, generator()) != many).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    assert torch.equal(kind(p=0.0)(many, generator()), many)


def test_blur_is_torchvisions_away_from_the_edges(images):
    out = GaussianBlur((0.5, 2.0), p=1.0)(images, generator())
    sigmas = 0.5 + 1.5 * torch.rand((2, BATCH, 1, 1), generator=generator())[0].flatten()
    for image, sigma, result in zip(images, sigmas.tolist(), out, strict=True):
        expected = tv.gaussian_blur(image.float(), [17, 17], [sigma, sigma])
        assert (result - expected)[:, 8:-8, 8:-8].abs().max() <= 0.51
    flat = torch.full_like(images, 200)
    assert torch.equal(GaussianBlur(p=1.0)(flat, generator()), flat)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ColorJitter(-0.1),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(p=2),
        lambda: GaussianBlur((0.0, 1.0)),
        lambda: GaussianBlur((2.0, 1.0)),
    ],
)
def test_an_amount_out_of_range(make):
    with pytest.raises(UserError):
        make()


# --- AutoAugment ---


@pytest.mark.paper
@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_the_policies_are_the_published_ones(policy):
    """arXiv 1805.09501, by torchvision's tables of policies and of magnitudes."""
    theirs = Policies(AutoAugmentPolicy(policy))
    space = theirs._augmentation_space(10, (331, 331))
    names = list(_OPERATIONS)
    table = AutoAugment(policy).table
    assert table.shape == (len(theirs.policies), 2, 3)
    for ours, expected in zip(table, theirs.policies, strict=True):
        for (operation, p, level), (name, probability, bin_) in zip(ours, expected, strict=True):
            assert names[int(operation)] == name
            assert float(p) == pytest.approx(probability)
            if bin_ is None:
                continue
            magnitudes, signed = space[name]
            _, mild, severe, both_ways = _OPERATIONS[name]
            magnitude = mild + (severe - mild) * float(level)
            magnitude = {"Posterize": round, "TranslateX": lambda x: x * 331}.get(
                name.replace("Y", "X"), float
            )(magnitude)
            assert magnitude == pytest.approx(float(magnitudes[bin_]), rel=1e-5), name
            assert both_ways == signed


def test_a_policy_is_its_two_operations_in_turn(images):
    augment = AutoAugment()
    names = list(_OPERATIONS)
    augment.table = torch.tensor(
        [[[names.index("Solarize"), 1.0, 5 / 9], [names.index("Equalize"), 1.0, 0.0]]]
    )
    expected = tv.equalize(tv.solarize(images, 255 * (1 - 5 / 9)))
    assert torch.equal(augment(images, generator()), expected)
    augment.table[:, :, 1] = 0
    assert torch.equal(augment(images, generator()), images)
    assert _OPERATIONS["Invert"].apply(images, images)[0, 0, 0, 0] == 255 - images[0, 0, 0, 0]


@pytest.mark.paper
@pytest.mark.parametrize("amount", [0.07, -0.23])
def test_geometry_is_that_of_the_released_policy(amount, images):
    """By Pillow, as PaCo's release: grey 128 outside, bicubic shears, the rest by neighbours."""
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    width, height = image.size
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    grey = {"fillcolor": (128, 128, 128)}
    expected = {
        "ShearX": image.transform(image.size, affine, (1, amount, 0, 0, 1, 0), bicubic, **grey),
        "ShearY": image.transform(image.size, affine, (1, 0, 0, amount, 1, 0), bicubic, **grey),
        "TranslateX": image.transform(image.size, affine, (1, 0, -amount * width, 0, 1, 0), **grey),
        "TranslateY": image.transform(
            image.size, affine, (1, 0, 0, 0, 1, -amount * height), **grey
        ),
        "Rotate": image.rotate(100 * amount, **grey),
    }
    for name, result in expected.items():
        magnitude = torch.full((1, 1, 1, 1), amount * (100 if name == "Rotate" else 1))
        moved = _OPERATIONS[name].apply(images[:1], magnitude)[0].permute(1, 2, 0).int()
        error = (moved - torch.from_numpy(np.array(result)).int()).abs()
        assert error.max() <= 1, name
        assert (error > 0).float().mean() < 0.01, name


def test_every_image_has_its_own_policy_and_draws_follow_the_generator(images):
    same = images[:1].repeat(60, 1, 1, 1)
    out = AutoAugment()(same, generator(3))
    assert len({image.numpy().tobytes() for image in out}) > 20
    assert torch.equal(AutoAugment()(same, generator(3)), out)
    assert torch.equal(same[0], images[0])
    assert AutoAugment("svhn")(same[:, :1], generator()).shape == (60, 1, 25, 30)

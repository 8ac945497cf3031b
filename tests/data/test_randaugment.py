"""Batched RandAugment against torchvision, one image at a time."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from data_support import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import stats
from timm.data import auto_augment as timm
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ltbench.data.transforms.randaugment import SPACES, RandAugment
from ltbench.errors import UserError

HEIGHT, WIDTH = 28, 26
GEOMETRIC = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
ENHANCEMENTS = {"brightness", "color", "contrast", "sharpness"}


def noise(batch: int, channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Neither black nor full range: every operation then shows, and so does what it fills in."""
    shape = (batch, channels, height, width)
    return torch.randint(20, 230, shape, dtype=torch.uint8, generator=generator(7))


def affine(image: Tensor, translate: tuple[int, int] = (0, 0), **shear: float) -> Tensor:
    degrees = [math.degrees(math.atan(shear.get(axis, 0.0))) for axis in ("x", "y")]
    center = [0, 0] if shear else None
    return tv.affine(image, 0.0, list(translate), 1.0, degrees, center=center)


ORACLE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: tv.autocontrast(image),
    "equalize": lambda image, _: tv.equalize(image),
    "shear_x": lambda image, slope: affine(image, x=slope),
    "shear_y": lambda image, slope: affine(image, y=slope),
    "translate_x": lambda image, share: affine(image, (int(share * WIDTH), 0)),
    "translate_y": lambda image, share: affine(image, (0, int(share * HEIGHT))),
    "rotate": tv.rotate,
    "brightness": lambda image, change: tv.adjust_brightness(image, 1 + change),
    "color": lambda image, change: tv.adjust_saturation(image, 1 + change),
    "contrast": lambda image, change: tv.adjust_contrast(image, 1 + change),
    "sharpness": lambda image, change: tv.adjust_sharpness(image, 1 + change),
    "posterize": lambda image, bits: tv.posterize(image, round(bits)),
    "solarize": lambda image, threshold: tv.solarize(image, min(threshold, 255)),
}


FIXMATCH = ORACLE | {  # by Pillow, as the ports of FixMatch: whole pixels are rounded
    "translate_x": lambda image, share: affine(image, (round(share * WIDTH), 0)),
    "translate_y": lambda image, share: affine(image, (0, round(share * HEIGHT))),
    "posterize": lambda image, bits: tv.posterize(image, int(bits)),
}


def magnitudes(space: str, magnitude: int) -> dict[str, list[float]]:
    """The magnitudes, with their signs, that arXiv 1909.13719 or FixMatch means by a bin."""
    u = magnitude / 30
    translate = 0.3 if space == "fixmatch" else 150 / 331
    enhance = [-0.05 - 0.9 * u] if space == "fixmatch" else [0.9 * u, -0.9 * u]
    table = {"posterize": [8 - 4 * u], "rotate": [30 * u, -30 * u]}
    table["solarize"] = [(256 if space == "fixmatch" else 255) * (1 - u)]
    table["shear_x"] = table["shear_y"] = [0.3 * u, -0.3 * u]
    table["translate_x"] = table["translate_y"] = [translate * u, -translate * u]
    table |= {name: enhance for name in ENHANCEMENTS}
    return {name: table.get(name, [0.0]) for name in ORACLE}


@pytest.mark.parametrize("space", ["standard", "fixmatch"])
@pytest.mark.parametrize("magnitude", [4, 9, 17, 30])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_torchvisions_result_of_one_operation(
    channels: int, magnitude: int, space: str
) -> None:
    images = noise(1, channels).expand(600, -1, -1, -1)
    oracle = FIXMATCH if space == "fixmatch" else ORACLE
    expected = [
        (name, value, oracle[name](images[0], value))
        for name, values in magnitudes(space, magnitude).items()
        for value in values
        if channels == 3 or name != "color"  # which leaves a grey image as it is
    ]
    outcomes = torch.stack([image for *_, image in expected]).int()
    seen = Counter()
    for image in RandAugment(1, magnitude, space)(images, generator()).int():
        error = (outcomes - image).abs()
        best = int((error > 0).float().mean((1, 2, 3)).argmin())
        name, value, _ = expected[best]
        if name in GEOMETRIC:  # a source that falls between two pixels may be rounded either way
            assert (error[best] > 0).float().mean() < 0.02, name
        elif name in ENHANCEMENTS:  # truncation to a level: rounding decides where it is exact
            assert error[best].max() <= 1, name
            assert (error[best] > 0).float().mean() < 0.1, name
        else:
            assert error[best].max() == 0, name
        seen[name, value] += 1
    assert set(seen) == {(name, value) for name, value, _ in expected}


def test_operations_and_signs_are_equally_likely() -> None:
    images = noise(1, height=17, width=17).expand(14_000, -1, -1, -1)
    outcomes, counts = RandAugment(1, 15)(images, generator()).unique(dim=0, return_counts=True)
    # Nine operations have a sign: 5 outcomes of probability 1/14 and 18 of 1/28.
    assert len(outcomes) == 23
    expected = torch.tensor([500] * 18 + [1000] * 5)
    assert stats.chisquare(counts.sort().values, expected).pvalue > 1e-3


def test_operations_follow_each_other_and_may_repeat() -> None:
    images = noise(1, height=20, width=20).expand(6_000, -1, -1, -1)
    one = RandAugment(1, 30)(images, generator()).unique(dim=0)
    two = RandAugment(2, 30)(images, generator()).unique(dim=0)
    chained = {bytes(tv.posterize(tv.equalize(images[0]), 4).flatten().tolist())}
    chained |= {bytes(tv.equalize(tv.posterize(images[0], 4)).flatten().tolist())}
    found = {bytes(image.flatten().tolist()) for image in two}
    assert len(one) == 23
    assert len(found) > 200
    assert chained <= found


def test_operation_is_left_out_with_probability_one_minus_p() -> None:
    images = noise(4_000, height=20, width=20)
    changed = (RandAugment(1, 30, p=0.5)(images, generator()) != images).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.5 * 13 / 14, abs=0.03)
    assert torch.equal(RandAugment(2, 30, p=0)(images, generator()), images)


@pytest.mark.parametrize(
    ("space", "low", "high"), [("standard", 0.1, 1.9), ("fixmatch", 0.05, 0.95)]
)
def test_magnitude_none_is_uniform_over_the_range(space: str, low: float, high: float) -> None:
    # Of a white dot on grey, only brightness changes the grey to more than a few levels.
    images = torch.full((20_000, 1, 5, 5), 100, dtype=torch.uint8)
    images[:, :, 2, 2] = 101
    corner = RandAugment(1, None, space)(images, generator())[:, 0, 1, 1]
    others = torch.tensor([0, 64, 96, 99, 100, 101, 112, 128, 154, 155, 156, 255])
    factors = corner[~torch.isin(corner, others)] / 100 + 0.005
    assert len(factors) == pytest.approx(20_000 / 14, rel=0.15)
    assert stats.kstest(factors, stats.uniform(low, high - low).cdf).statistic < 0.06


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.paper
@pytest.mark.parametrize(("channels", "fill"), [(3, [125, 123, 114]), (1, [122])])
def test_cutout_is_the_rectangle_that_pillow_draws(channels: int, fill: list[int]) -> None:
    """As the released strong views do: clipped at 0 before the far corner is set, ends included."""
    images = torch.zeros(400, channels, 30, 40, dtype=torch.uint8)
    cut = RandAugment(0, cutout=0.5)(images, generator())
    assert cut.flatten(2).amax((0, 2)).tolist() == fill
    draws = torch.rand((3, 400, 1, 1, 1), generator=generator()).flatten(1)
    for image, (side, column, row) in zip(cut, draws.T.tolist(), strict=True):
        v = side * 0.5 * 40
        x, y = int(max(0, column * 40 - v / 2)), int(max(0, row * 30 - v / 2))
        canvas = Image.new("L", (40, 30))
        ImageDraw.Draw(canvas).rectangle((x, y, min(40, x + v), min(30, y + v)), 1)
        assert torch.equal(image[0] > 0, torch.from_numpy(np.array(canvas)) > 0)


@pytest.mark.paper
def test_cutout_erases_a_twelfth_on_average_and_leaves_no_image_whole() -> None:
    images = torch.zeros(40_000, 1, 32, 32, dtype=torch.uint8)
    erased = (RandAugment(0, cutout=0.5)(images, generator()) > 0).flatten(1).float()
    assert erased.mean() == pytest.approx(0.0835, abs=0.002)
    assert erased.any(1).all()


@pytest.mark.paper
def test_the_strong_view_keeps_4_to_7_bits_a_quarter_of_the_time_each() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4_000, -1, -1, -1)
    each = SPACES["fixmatch"]["Posterize"]
    draws = torch.rand((4_000, 1, 1, 1), generator=generator())
    images = each.apply(levels, each.mild + (each.severe - each.mild) * draws)
    counts = Counter(len(image.unique()) for image in images)
    assert sorted(counts) == [16, 32, 64, 128]
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


PILLOW = {"resample": Image.Resampling.BICUBIC, "fillcolor": (124, 116, 104)}


@pytest.mark.paper
@pytest.mark.parametrize("space", ["timm", "timm_increasing"])
@pytest.mark.parametrize("level", [1.3, 5.0, 8.6, 9.0, 9.4])
def test_timms_spaces_are_timms_operations(space: str, level: float) -> None:
    image = noise(1)
    names = timm._RAND_TRANSFORMS if space == "timm" else timm._RAND_INCREASING_TRANSFORMS
    short = {name.removesuffix("Increasing").removesuffix("Rel"): name for name in names}
    assert short.keys() == SPACES[space].keys()
    for name, operation in SPACES[space].items():
        arguments = timm.LEVEL_TO_ARG[short[name]]
        magnitude = operation.mild + (operation.severe - operation.mild) * level / 10
        results = [
            operation.apply(image, torch.full((1, 1, 1, 1), sign * magnitude))[0].int()
            for sign in ((1, -1) if operation.signed else (1,))
        ]
        values = arguments(level, {}) if arguments else ()
        if values == (0,):  # no bit is left, which newer Pillow refuses
            expected = torch.zeros_like(image[0]).int()
        else:
            expected = tensor(timm.NAME_TO_OP[short[name]](pil(image[0]), *values, **PILLOW)).int()
        error = torch.stack([(result - expected).abs() for result in results]).flatten(1)
        best = error[error.float().mean(1).argmin()]
        # A pixel on the edge of the image may fall to either side of it.
        assert (best > 1).float().mean() < 0.01, (name, best.max())
        near = 1 if name in ("Color", "Contrast") else 0.02  # Pillow rounds their grey first
        assert (best > 0).float().mean() <= near, (name, best.max())


@pytest.mark.paper
def test_deits_randaugment_posterizes_to_1_bit() -> None:
    """rand-m9-mstd0.5-inc1: half of the time, as its strength varies, 1 bit is left, or 0."""
    each = SPACES["timm_increasing"]["Posterize"]
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    at_nine = torch.full((1, 1, 1, 1), each.mild + (each.severe - each.mild) * 27 / 30)
    assert each.apply(levels, at_nine).unique().tolist() == [0, 128]


def test_the_magnitude_varies_by_its_standard_deviation() -> None:
    # Of a flat grey, brightness alone gives more than a few levels.
    images = torch.full((60_000, 1, 5, 5), 100, dtype=torch.uint8)
    out = RandAugment(1, 15, "timm", magnitude_std=3)(images, generator())[:, 0, 2, 2]
    factors = out[(out > 64) & (out < 140) & (out != 100) & (out != 96)].float() / 100
    assert factors.mean() == pytest.approx(1.0, abs=0.05)
    spread = (factors - 1.0).abs().median() / 0.6745  # 1.8 of factor are 30 bins
    assert spread == pytest.approx(1.8 * 3 / 30, rel=0.25)
    with pytest.raises(UserError, match="magnitude_std"):
        RandAugment(2, None, magnitude_std=1.0)


@pytest.mark.parametrize(
    "arguments",
    [{"num_ops": -1}, {"magnitude": 31}, {"space": "wide"}, {"p": 1.5}, {"cutout": -0.1}],
)
def test_argument_out_of_range_is_the_users_mistake(arguments: dict) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        RandAugment(**arguments)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(
        st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12)
    ),
    transform=st.builds(
        RandAugment,
        num_ops=st.integers(0, 4),
        magnitude=st.none() | st.integers(0, 30),
        space=st.sampled_from([*SPACES]),
        p=st.floats(0, 1),
        cutout=st.floats(0, 1),
    ),
    seed=st.integers(0, 2**31),
)
def test_kind_is_kept_and_an_image_depends_on_itself_and_the_generator_alone(
    shape: tuple[int, int, int, int], transform: RandAugment, seed: int
) -> None:
    images, others = (
        torch.randint(256, shape, dtype=torch.uint8, generator=generator(s)) for s in (1, 2)
    )
    others[0] = images[0]
    before, state = images.clone(), torch.get_rng_state()
    first, again = (transform(images, generator(seed)) for _ in range(2))
    assert first.dtype == torch.uint8
    assert first.shape == shape
    assert torch.equal(first, again)
    assert torch.equal(first[0], transform(others, generator(seed))[0])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)

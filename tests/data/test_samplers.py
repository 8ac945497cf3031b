"""Samplers: what each rank sees is a function of seed, epoch and rank."""

from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from ltbench import seeding
from ltbench.data import samplers
from ltbench.data.samplers import (
    SAMPLERS,
    ClassAwareSampler,
    ClassBalancedSampler,
    EvaluationSampler,
    ProgressiveSampler,
    RepeatedSampler,
    ShuffledSampler,
)
from ltbench.errors import UserError


def sharded(
    kind: type, images: object, world: int, epoch: int = 0, seed: int = 0, numbered: bool = False
) -> list[list[int]]:
    """What each rank sees of `images`: their labels, or how many there are."""
    images = np.zeros(images, dtype=np.int64) if isinstance(images, int) else images
    shards = []
    for rank in range(world):
        with mock.patch.object(samplers, "_world", lambda rank=rank: (world, rank)):
            arguments = () if kind is EvaluationSampler else (seed,)
            sampler = kind(images, *arguments)
        sampler.set_epoch(epoch)
        sampler.numbered = numbered
        shards.append(list(sampler))
        assert len(sampler) == len(shards[-1])
    return shards


@given(st.integers(1, 60), st.integers(1, 4))
def test_evaluation_sees_each_image_once(size: int, world: int) -> None:
    shards = sharded(EvaluationSampler, size, world)
    assert sorted(i for shard in shards for i in shard) == list(range(size))


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 5))
def test_training_shards_are_equal_and_cover(size: int, world: int, epoch: int) -> None:
    shards = sharded(ShuffledSampler, size, world, epoch)
    assert len({len(shard) for shard in shards}) == 1
    seen = [i for shard in shards for i in shard]
    assert set(seen) == set(range(size))
    assert len(seen) - size < world  # only the padding repeats
    assert seen == [i for shard in sharded(ShuffledSampler, size, world, epoch) for i in shard]


def test_one_rank_sees_the_permutation_that_two_share() -> None:
    (whole,) = sharded(ShuffledSampler, 40, 1, epoch=3)
    halves = sharded(ShuffledSampler, 40, 2, epoch=3)
    assert whole[0::2] == halves[0]
    assert whole[1::2] == halves[1]


@pytest.mark.parametrize(("epoch", "seed"), [(1, 0), (0, 1)])
def test_epoch_and_seed_change_the_order_and_nothing_global_does(epoch: int, seed: int) -> None:
    reference = sharded(ShuffledSampler, 40, 1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert sharded(ShuffledSampler, 40, 1) == reference
    assert sharded(ShuffledSampler, 40, 1, epoch, seed) != reference
    assert torch.equal(torch.get_rng_state(), state)


# --- by class, repeated, numbered ---

LABELS = np.repeat([3, 0, 7], [80, 15, 5])  # classes without images are nothing to draw from


def test_every_class_is_drawn_equally_often():
    drawn = np.concatenate(
        [sharded(ClassBalancedSampler, LABELS, 1, epoch)[0] for epoch in range(200)]
    )
    expected = len(drawn) / 3 / np.bincount(LABELS)[LABELS]
    # Each image is a binomial: no one of the 100 is 5 standard deviations off.
    assert np.all(np.abs(np.bincount(drawn, minlength=100) - expected) < 5 * expected**0.5)


def kind_of(name):
    return partial(ProgressiveSampler, epochs=9) if name == "progressive" else SAMPLERS[name]


COUNTS = np.array([80, 15, 5])


@pytest.mark.parametrize(
    ("name", "epoch", "shares"),
    [
        ("class_balanced", 0, [1, 1, 1]),
        ("square_root", 0, COUNTS**0.5),
        ("reversed", 0, 1 / COUNTS),
        ("progressive", 0, COUNTS),
        ("progressive", 4, COUNTS / 100 + 1 / 3),
        ("progressive", 8, [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("world", [1, 3])
def test_classes_and_images_come_as_often_as_they_should(name, epoch, shares, world):
    drawn = np.concatenate(
        [np.concatenate(sharded(kind_of(name), LABELS, world, epoch, seed)) for seed in range(200)]
    )
    chances = (shares / np.sum(shares) / COUNTS).repeat(COUNTS)
    expected = len(drawn) * chances
    assert np.all(np.abs(np.bincount(drawn, minlength=100) - expected) < 5 * expected**0.5)


@pytest.mark.parametrize("in_a_row", [1, 4])
def test_class_aware_sampling_takes_some_of_each_class_and_no_image_again_before_all(in_a_row):
    kind = partial(ClassAwareSampler, in_a_row=in_a_row)
    (order,) = sharded(kind, LABELS, 1, epoch=2)
    assert len(order) == 3 * max(COUNTS)  # as released: the largest class once, and others as often
    groups = LABELS[order].reshape(-1, in_a_row)
    assert (groups == groups[:, :1]).all()
    for turn in np.array_split(groups[:, 0], range(3, len(groups), 3)):
        assert len({*turn}) == len(turn)  # a round has each class once
    for label, count in zip((3, 0, 7), COUNTS, strict=True):
        rows = [row for row in order if LABELS[row] == label]
        for start in range(0, len(rows), count):
            cycle = rows[start : start + count]
            assert len({*cycle}) == len(cycle)


def test_what_a_sampler_lacks_is_named():
    with pytest.raises(UserError, match="epochs"):
        ProgressiveSampler(LABELS, 0)
    with pytest.raises(UserError, match="in_a_row"):
        ClassAwareSampler(LABELS, 0, in_a_row=0)


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 5), st.integers(0, 3))
def test_ranks_share_the_order_of_one(name, world, epoch):
    kind, labels = kind_of(name), np.arange(300) % 7
    (whole,) = sharded(kind, labels, 1, epoch)
    shards = sharded(kind, labels, world, epoch)
    padded = whole + whole[: -len(whole) % world]
    assert shards == [padded[rank::world] for rank in range(world)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_order_is_a_function_of_seed_and_epoch_alone(name):
    kind = kind_of(name)
    reference = sharded(kind, LABELS, 2, epoch=4, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert sharded(kind, LABELS, 2, epoch=4, seed=1) == reference
    assert torch.equal(torch.get_rng_state(), state)
    assert sharded(kind, LABELS, 2, epoch=5, seed=1) != reference
    assert sharded(kind, LABELS, 2, epoch=4, seed=2) != reference


@pytest.mark.paper
@pytest.mark.parametrize(
    ("size", "samples", "batch", "steps"),
    [
        (12406, 12288, 1024, 12),
        (13996, 13824, 1024, 14),
        (10847, 10752, 1024, 11),
        (12608, 12544, 1024, 13),
        (115846, 115712, 2048, 57),
        (437513, 437504, 2048, 214),
    ],
)
def test_repeated_augmentation_visits_what_deit_lt_visits(size, samples, batch, steps):
    """arXiv 2404.02900: CIFAR-10-LT and CIFAR-100-LT at factors 100 and 50, ImageNet-LT, iNat."""
    first, second = sharded(RepeatedSampler, size, 2)
    assert len(first) + len(second) == samples
    assert -(-len(first) // (batch // 2)) == steps
    assert len({*first, *second}) == -(-samples // 3)
    a, b = first[0], second[1]
    assert (first[:4], second[:3]) == ([a, a, b, first[3]], [a, b, b])
    assert first[3] == first[4] != b


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("size", [100, 256, 1000])
def test_repeated_augmentation_is_that_of_timm(size, world):
    for rank, shard in enumerate(sharded(RepeatedSampler, size, world, epoch=2, seed=5)):
        # An old timm rounds fewer than 256 images down to none.
        theirs = RepeatAugSampler(range(size), world, rank, selected_round=256 * (size >= 256))
        theirs.set_epoch(seeding.derive(5, "shuffle", 2))
        assert list(theirs) == shard


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_number_comes_twice_in_a_training(name):
    labels, numbers = np.arange(280) % 7, []
    for epoch in range(3):
        plain = sharded(kind_of(name), labels, 4, epoch)
        for rows, pairs in zip(
            plain, sharded(kind_of(name), labels, 4, epoch, numbered=True), strict=True
        ):
            assert [row for row, _ in pairs] == rows
            numbers += [number for _, number in pairs]
    assert len(set(numbers)) == len(numbers)
    one, two = (
        dict(
            pair[::-1]
            for shard in sharded(kind_of(name), labels, world, numbered=True)
            for pair in shard
        )
        for world in (1, 2)
    )
    assert one == two  # on any number of ranks an image has the same number

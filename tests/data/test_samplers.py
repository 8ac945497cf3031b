"""Samplers: what each rank sees is a function of seed, epoch and rank."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltbench.data import samplers
from ltbench.data.samplers import EvaluationSampler, ShuffledSampler


def sharded(kind: type, size: int, world: int, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    shards = []
    for rank in range(world):
        with mock.patch.object(samplers, "_world", lambda rank=rank: (world, rank)):
            sampler = kind(range(size), seed) if kind is ShuffledSampler else kind(range(size))
        sampler.set_epoch(epoch)
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

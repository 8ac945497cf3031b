"""Streams: what a training batch holds, in which views, and what a user may plug in by name."""

import numpy as np
import pytest
import torch
from data_support import trainer

from ltbench.data import LongTailDataModule
from ltbench.data.base import Statistics
from ltbench.data.samplers import (
    ClassBalancedSampler,
    ShuffledSampler,
    SideBySide,
    TrainingSampler,
)
from ltbench.data.sources.digits import Digits
from ltbench.data.streams import Stream, Streams
from ltbench.errors import UserError

LABELS = np.repeat([0, 1], [17, 3])


class LastFirst(TrainingSampler):
    """A sampler of one's own: the last images first, each ``times`` times."""

    def __init__(self, labels, seed, times=1):
        super().__init__(labels, seed, times * len(labels))
        self.times = times

    def order(self, generator):
        return torch.arange(len(self.labels)).flip(0).repeat(self.times)


class HalfDigits(Digits):
    """A source of one's own."""

    display_name = "Half of the digits"


def late(c, num_classes):
    """A profile of one's own: only the last class is small."""
    return float(c == num_classes - 1)


def digits(**options):
    data = LongTailDataModule("digits", **{"imbalance_factor": 10, "batch_size": 16} | options)
    data.setup()
    return data


class Balanced:
    """A method with a second, class-balanced stream, whose images take the main one's views."""

    def streams(self, data):
        labels = data.splits["train"].labels
        samplers = [kind(labels, 0) for kind in (ShuffledSampler, ClassBalancedSampler)]
        both = {**data.streams().streams, "balanced": Stream("train")}
        return Streams(SideBySide(samplers, [data.batch_size] * 2, 0), both)

    def to_predict(self, data):
        return data.dataset("test")


def test_a_method_may_add_a_stream_with_a_sampler_of_its_own():
    data = digits()
    data.trainer = trainer(method=Balanced())
    batches = list(data.train_dataloader())
    images = len(data.splits["train"].labels)
    assert len(batches) == -(-images // 16)
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == sorted(
        data.splits["train"].indices.tolist()
    )
    second = torch.cat([batch["balanced"]["label"] for batch in batches])
    assert len(second) == images
    for batch in batches:
        assert len(batch["label"]) == len(batch["balanced"]["label"])
    counts = torch.bincount(second, minlength=10)
    assert counts.max() < 3 * counts.min()
    assert next(iter(data.predict_dataloader()))["image"].shape[0] == 400


def test_views_of_the_main_stream_are_made_of_all_streams_that_have_none_together():
    sizes = []

    def invert(images, generator):
        sizes.append(len(images))
        return 255 - images

    data = digits(augment=[invert], views={"plain": []})
    data.trainer = trainer(method=Balanced())
    batch = next(iter(data.train_dataloader()))
    made = data.on_after_batch_transfer(batch, 0)
    assert sizes == [32]
    for part, raw in ((made, batch), (made["balanced"], batch["balanced"])):
        assert torch.equal(part["image"], data.normalise(255 - raw["image"]))
        assert torch.equal(part["plain"], data.normalise(raw["image"]))
        assert torch.equal(part["label"], raw["label"])


@pytest.mark.parametrize("world", [1, 3])
def test_ranks_share_each_step_of_streams_drawn_apart(world, monkeypatch):
    def steps(world, rank):
        monkeypatch.setattr("ltbench.data.samplers._world", lambda: (world, rank))
        samplers = [kind(LABELS, 0) for kind in (ShuffledSampler, ClassBalancedSampler)]
        rows = list(SideBySide(samplers, [6, 6], 0))
        per_step = 12 // world
        return [rows[start : start + per_step] for start in range(0, len(rows), per_step)]

    shares = [steps(world, rank) for rank in range(world)]
    assert {len(rank) for rank in shares} == {4}
    for step in zip(*shares, strict=True):
        for rows in step:  # as many of either stream, on each rank
            assert sum(row < 20 for row in rows) == len(rows) / 2
    first = sorted({row for rank in shares for rows in rank for row in rows if row < 20})
    assert first == list(range(20))


# --- names of one's own ---


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("LTBENCH_TRUST", __name__)


def test_a_sampler_of_ones_own():
    here = f"{__name__}.LastFirst"
    once = digits(sampler=here)
    order = list(once.train_dataloader().sampler)
    assert order == list(range(len(order)))[::-1]
    twice = digits(sampler={"class_path": here, "init_args": {"times": 2}})
    assert list(twice.train_dataloader().sampler) == order * 2


def test_a_source_of_ones_own():
    data = LongTailDataModule(f"{__name__}.HalfDigits")
    assert data.source.display_name == "Half of the digits"
    assert data.source_name == f"{__name__}.HalfDigits"


def test_a_profile_of_ones_own():
    data = digits(profile=f"{__name__}.late", largest=100, val_fraction=0)
    assert data.class_counts.tolist() == [100] * 9 + [10]
    assert data.describe()["profile"] == f"{__name__}.late"


@pytest.mark.parametrize("option", ["sampler", "source", "profile"])
@pytest.mark.parametrize("name", ["clas_balanced", f"{__name__}.missing", f"{__name__}.LABELS"])
def test_names_that_mean_nothing_are_refused_when_the_data_is_built(option, name):
    with pytest.raises(UserError, match=option):
        LongTailDataModule(**{option: name})


def test_a_class_of_another_kind_is_refused():
    with pytest.raises(UserError, match="TrainingSampler"):
        digits(sampler=f"{__name__}.HalfDigits")


# --- input statistics ---


def test_a_run_may_say_what_its_weights_were_trained_on():
    data = digits()
    images = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)
    before = data.normalise(images)
    assert data.statistics == (data.source.mean, data.source.std)
    assert "normalisation" not in data.describe()
    data.normalisation = Statistics((0.5,), (0.25,))
    assert torch.allclose(data.normalise(images), torch.tensor((0.2 - 0.5) / 0.25))
    assert not torch.equal(data.normalise(images), before)
    identity = data.identity()
    assert (identity["mean"], identity["std"]) == ([0.5], [0.25])
    assert data.describe()["normalisation"] == {"mean": (0.5,), "std": (0.25,)}

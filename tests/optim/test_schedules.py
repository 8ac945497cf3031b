"""Learning-rate schedules and points in training, against the published recipes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltbench.errors import UserError
from ltbench.optim.schedules import Constant, Cosine, MultiStep, epoch_of


@pytest.mark.parametrize(
    ("epoch", "lr"), [(0, 0.02), (4, 0.1), (159, 0.1), (160, 0.001), (179, 0.001), (180, 0.00001)]
)
def test_cifar_recipe(epoch: int, lr: float) -> None:
    assert 0.1 * MultiStep().factor(epoch, 200) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("epoch", "lr"), [(0, 0.2), (45, 0.1), (60, 0.05), (89, 6.0917e-5)])
def test_cosine_of_the_large_sets(epoch: int, lr: float) -> None:
    assert 0.2 * Cosine().factor(epoch, 90) == pytest.approx(lr, rel=1e-4)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("epoch", "lr"), [(1, 0.005), (10, 0.05), (320, 0.05), (321, 0.005), (360, 0.005), (361, 5e-4)]
)
def test_paco_on_cifar_counts_from_1(epoch: int, lr: float) -> None:
    """As released (2107.12028): ten epochs of warm-up, rates fall when 320 and 360 are over."""
    schedule = MultiStep(0.025, [(0.8, 0.1), (0.9, 0.01)])
    assert 0.05 * schedule.factor(epoch - 1, 400) == pytest.approx(lr, rel=1e-12)


@pytest.mark.paper
@pytest.mark.parametrize("epoch", [10, 11, 205, 399])
def test_paco_on_imagenet_starts_its_cosine_in_the_last_epoch_of_the_warm_up(epoch: int) -> None:
    expected = (1 + math.cos(math.pi * (epoch - 10 + 1) / (400 - 10 + 1))) / 2
    assert Cosine(0.025).factor(epoch, 400) == pytest.approx(expected, rel=1e-12)
    assert [Cosine(0.025).factor(e, 400) for e in (0, 9)] == [0.1, 1.0]


def test_constant() -> None:
    assert Constant().factor(7, 10) == 1.0


@given(st.integers(10, 400))
def test_a_shorter_run_keeps_the_shape(epochs: int) -> None:
    schedule = MultiStep()
    factors = [schedule.factor(e, epochs) for e in range(epochs)]
    assert factors.index(0.01) == round(0.8 * epochs)
    assert factors.index(0.0001) == round(0.9 * epochs)
    assert all(0 < f <= 1 for f in factors)


def test_a_point_is_epochs_or_a_fraction() -> None:
    assert epoch_of(160, 200) == epoch_of(0.8, 200) == 160
    assert epoch_of(1, 200) == 1
    assert epoch_of(1.0, 200) == 200


@pytest.mark.parametrize("point", [-1, -0.1, 1.5, math.inf])
def test_no_point_in_training(point: float) -> None:
    with pytest.raises(UserError, match="point in training"):
        epoch_of(point, 200)

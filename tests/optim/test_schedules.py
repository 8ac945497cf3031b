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


def test_cosine_warms_up_and_starts_at_the_base_rate() -> None:
    schedule = Cosine(warmup=5)
    assert [schedule.factor(e, 100) for e in (0, 4, 5)] == [0.2, 1.0, 1.0]


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

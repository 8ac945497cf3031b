import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.methods.selmix.gain import (
    CONTROLS,
    GainHistory,
    pair_gains,
    selective,
    smooth,
    without_empty,
)
from ltbench.objectives import BestResponse, LeastRecall, Objective, harmonic_mean, mean

# The example of three classes below is worked out by hand from arXiv 2403.18301.
Q = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.4, 0.4]], dtype=torch.float64)
JOINT = Q / 3
CENTROIDS = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
WEIGHT = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.5, 0.5]])
BIAS = torch.zeros(3)
MEAN = Objective(mean)
SLOPES = MEAN.logit_gradient(JOINT, MEAN.initial)


def close(actual, expected, tol=6e-7):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=tol, rtol=0)


def slopes_of_min():
    objective = LeastRecall(torch.eye(3, dtype=torch.float64))
    multipliers = objective.update(objective.initial, JOINT, BestResponse(5))
    return objective.logit_gradient(JOINT, multipliers)


@pytest.mark.paper
def test_gains():
    gains = pair_gains(CENTROIDS, WEIGHT, BIAS, SLOPES)
    facts = [
        [0.033241, 0.013949, 0.027572],
        [0.038578, 0.042080, 0.042960],
        [0.040735, 0.033057, 0.042388],
    ]
    close(gains, facts)
    assert int(gains.argmax()) == 1 * 3 + 2


@pytest.mark.paper
def test_shares():
    gains = pair_gains(CENTROIDS, WEIGHT, BIAS, slopes_of_min())
    close(gains[2], [0.185616, 0.172226, 0.175197])
    assert (gains[:2] < 0).all()
    shares = selective(gains, 10)
    close(shares[2], [0.360264, 0.315116, 0.324620])
    assert (shares[:2] == 0).all()
    smoothed = smooth(shares)
    close(smoothed[:2], [[0.027778] * 3] * 2)
    close(smoothed[2], [0.297976, 0.264114, 0.271243])


def random_classes(seed, classes, features, spread=3.0):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(classes, features, generator=draw, dtype=torch.float64).abs() * spread
    w = torch.randn(classes, features, generator=draw, dtype=torch.float64)
    b = torch.randn(classes, generator=draw, dtype=torch.float64)
    rows = torch.rand(classes, classes, generator=draw, dtype=torch.float64) + torch.eye(classes)
    joint = rows / rows.sum()
    return z, w, b, joint


def slow_gains(z, w, b, slopes, share):
    """The sum over k and l of the definition, pair by pair."""
    classes = len(z)
    gains = np.zeros((classes, classes))
    for i in range(classes):
        for j in range(classes):
            mixed = share * z[i] + (1 - share) * z[j]
            p = (w @ mixed + b).softmax(0)
            for k in range(classes):
                for c in range(classes):
                    gains[i, j] += slopes[k, c] * (float(c == i) - p[c]) * (mixed @ z[k])
    return torch.from_numpy(gains)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 6),
    features=st.integers(1, 7),
    share=st.floats(0.1, 1),
    block=st.integers(1, 7),
    spread=st.sampled_from([0.1, 3.0, 100.0]),
)
def test_against_the_definition(seed, classes, features, share, block, spread):
    z, w, b, joint = random_classes(seed, classes, features, spread)
    slopes = MEAN.logit_gradient(joint, MEAN.initial)
    expected = slow_gains(z, w, b, slopes, share)
    found = pair_gains(z, w, b, slopes, share, block=block)
    assert_close(found, expected, rtol=1e-9, atol=1e-11 * max(1, spread**2))


@pytest.mark.parametrize("utility", [mean, harmonic_mean])
def test_against_a_finite_step_of_the_classifier(utility):
    """Step along the cross-entropy gradient at z_ij; see what the objective becomes."""
    z, w, b, joint = random_classes(1, 5, 4, 0.7)
    objective = Objective(utility)
    gains = pair_gains(z, w, b, objective.logit_gradient(joint, objective.initial))
    prior = joint.sum(1, keepdim=True)
    for i in range(5):
        for j in range(5):
            weight = w.clone().requires_grad_()
            mixed = 0.8 * z[i] + 0.2 * z[j]
            loss = torch.nn.functional.cross_entropy((weight @ mixed + b)[None], torch.tensor([i]))
            (gradient,) = torch.autograd.grad(loss, weight)
            values = []
            for step in (1e-5, -1e-5):
                shifted = joint.log() - step * z @ gradient.T
                values.append(objective.value(prior * shifted.softmax(1)))
            assert float(gains[i, j]) == pytest.approx(
                float(values[0] - values[1]) / 2e-5, rel=1e-6
            )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10))
def test_invariances(seed, scale):
    z, w, b, joint = random_classes(seed, 5, 4)
    slopes = MEAN.logit_gradient(joint, MEAN.initial)
    gains = pair_gains(z, w, b, slopes)
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(4, generator=draw, dtype=torch.float64)
    assert_close(pair_gains(z, w + common, b, slopes), gains, rtol=1e-7, atol=1e-9)
    assert_close(pair_gains(scale * z, w / scale, b, slopes), scale**2 * gains)
    assert_close(pair_gains(z, w, b, torch.zeros_like(slopes)), torch.zeros_like(gains))


def test_sharp_predictions_do_not_underflow():
    z = 60 * torch.eye(4)
    gains = pair_gains(z, torch.eye(4) * 10, torch.zeros(4), torch.eye(4) - 0.25)
    assert gains.isfinite().all()
    assert_close(gains.diagonal(), torch.zeros(4, dtype=torch.float64))  # predicted right already


def test_logits_that_overflow_are_named():
    with pytest.raises(UserError, match="logits"):
        pair_gains(1000 * torch.eye(4), torch.eye(4) * 10, torch.zeros(4), torch.eye(4) - 0.25)


def test_features_that_are_not_finite_are_named():
    with pytest.raises(UserError, match="features"):
        pair_gains(CENTROIDS * torch.inf, WEIGHT, BIAS, SLOPES)
    with pytest.raises(UserError, match="classifier weights"):
        pair_gains(CENTROIDS, WEIGHT * torch.nan, BIAS, SLOPES)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 8), sharpness=st.floats(0.1, 1e4))
def test_policies_give_shares(seed, classes, sharpness):
    draw = torch.Generator().manual_seed(seed)
    gains = torch.randn(classes, classes, generator=draw, dtype=torch.float64) * 30
    found = [selective(gains, sharpness), selective(gains, sharpness, positive_only=False)]
    found += [control(gains) for control in CONTROLS.values()]
    for shares in [*found, *(smooth(shares) for shares in found)]:
        assert (shares >= 0).all()
        assert float(shares.sum()) == pytest.approx(1)
    if (gains > 0).any():
        assert (found[0][gains <= 0] == 0).all()
        assert gains[found[0] == found[0].max()].max() == gains.max()
    assert_close(found[1], (sharpness * gains).flatten().softmax(0).view_as(gains))


def test_controls():
    gains = torch.tensor([[0.1, 0.3], [-0.2, 0.2]], dtype=torch.float64)
    assert_close(CONTROLS["uniform"](gains), torch.full((2, 2), 0.25, dtype=torch.float64))
    close(CONTROLS["class_balanced"](gains), [[0.5, 0.0], [0.0, 0.5]])
    close(CONTROLS["greedy"](gains), [[0.0, 1.0], [0.0, 0.0]])
    close(selective(-gains.abs()), [[0.25, 0.25], [0.25, 0.25]])


def test_empty_classes_are_no_partners():
    shares = torch.tensor([[0.1, 0.3, 0.1], [0.0, 0.2, 0.0], [0.1, 0.1, 0.1]]).double()
    left = without_empty(shares, torch.tensor([True, False, True]))
    assert (left[:, 1] == 0).all()
    close(left, [[0.3125, 0, 0.3125], [0, 0, 0], [0.1875, 0, 0.1875]])  # the second row lost all
    assert_close(without_empty(shares, torch.ones(3, dtype=torch.bool)), shares)
    with pytest.raises(UserError, match="pair_smoothing"):
        without_empty(CONTROLS["greedy"](shares), torch.tensor([True, False, True]))


def test_history():
    history = GainHistory(actual=[0.05, 0.01, 0.03])
    gains, rates = [3.0, 2.0, 5.0, 4.0], [0.04, 0.005, 0.02, 0.01]
    for gain, rate in zip(gains, rates, strict=True):
        history.begin(gain, rate, steps=50)
    assert history.predicted == pytest.approx([6, 0.5, 5, 2])
    assert history.last_change() == (history.predicted[2], 0.03)
    assert history.summary() == {
        "predicted_change": pytest.approx(2),
        "actual_change": 0.03,
        "change_correlation": pytest.approx(spearmanr([6, 0.5, 5], [0.05, 0.01, 0.03]).statistic),
        "gain_correlation": pytest.approx(spearmanr([3, 2, 5], [1.25, 2, 1.5]).statistic),
    }


def test_a_history_of_one_cycle_or_of_equal_ones_has_no_rank_correlation():
    first = GainHistory(predicted=[0.3], rates=[0.1])
    assert first.summary() == {"predicted_change": 0.3}
    assert first.last_change() is None
    equal = GainHistory(predicted=[0.3, 0.3], actual=[0.1, 0.1], rates=[0.1, 0.1])
    assert equal.summary() == {"predicted_change": 0.3, "actual_change": 0.1}
    still = GainHistory(predicted=[0.0, 0.0], actual=[0.1, 0.2], rates=[0.0, 0.0])
    assert still.summary() == {"predicted_change": 0.0, "actual_change": 0.2}

"""CSST: the hybrid loss, the weighted target and its threshold, against arXiv 2304.14738."""

import pytest
import torch
import torch.nn.functional as F
from csst_digits import COVERAGE, PRIOR
from hypothesis import given, settings
from hypothesis import strategies as st
from semi_digits import as_batch, of_logits
from torch.testing import assert_close

from ltbench.methods.csst import (
    CSST,
    hybrid_loss,
    target_divergence,
    weighted_target,
)
from ltbench.objectives import decompose

LOGITS = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)


LABELS = torch.arange(3)


# Gains of arXiv 2304.14738, section 4, after one update with step size 0.1: min recall from
# recalls (.9, .6, .2), and mean recall under coverage from coverages (.55, .3, .15).
MIN_RECALL = torch.tensor([0.322273, 0.332087, 0.345640], dtype=torch.float64).div(PRIOR).diag()


def close(actual, expected, tol=1e-6):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert_close(actual.double(), expected, atol=tol, rtol=0)


def same(rows):
    """The toy logits once a row."""
    return LOGITS.expand(rows, 3)


@pytest.mark.paper
def test_diagonal_gains_give_logit_adjustment():
    close(hybrid_loss(same(3), LABELS, MIN_RECALL), [0.123741, 2.406504, 3.639651], tol=3e-6)
    balanced = (1 / (3 * PRIOR)).diag()
    close(hybrid_loss(same(3), LABELS, balanced), [0.128379, 2.381142, 3.574289])
    plain = torch.eye(3, dtype=torch.float64)
    close(hybrid_loss(same(3), LABELS, plain), [0.464369, 1.464369, 1.964369])


@pytest.mark.paper
def test_the_hybrid_loss_under_coverage():
    mixing, diagonal = decompose(COVERAGE)
    close(mixing.sum(1), [1.262383, 1.489329, 1.561667])
    close(diagonal.log(), [-0.240556, 0.693980, 1.303818])
    close(hybrid_loss(same(3), LABELS, COVERAGE), [0.834889, 2.485543, 3.642573])
    close(hybrid_loss(same(3), LABELS, 10 * COVERAGE), [0.834889, 2.485543, 3.642573])
    soft = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    close(hybrid_loss(same(1), soft, COVERAGE), [1.610853])


@pytest.mark.paper
def test_the_weights_of_the_loss_that_is_not_hybrid():
    weights = COVERAGE.sum(1, keepdim=True) * weighted_target(LABELS, COVERAGE)
    close(-(weights * LOGITS.log_softmax(0)).sum(1), [1.543175, 3.762661, 7.869943], tol=3e-6)
    rows = [[0.534391, 0.227707, 0.237903], [0.116468, 0.752035, 0.131497]]
    close(weighted_target(LABELS[:2], COVERAGE), rows)


@pytest.mark.paper
def test_gradients_of_the_hybrid_loss():
    logits = same(3).clone().requires_grad_()
    hybrid_loss(logits, LABELS, COVERAGE).sum().backward()
    close(logits.grad[0], [0.058942, -0.014353, -0.044589])
    close(logits.grad[2], [0.915688, 0.021922, -0.937610])


@pytest.mark.paper
@pytest.mark.parametrize(
    ("probabilities", "divergence", "kept"),
    [
        ((0.5, 0.3, 0.2), 0.01405, (True, True)),
        ((0.97, 0.02, 0.01), 0.98925, (False, False)),
        ((0.02, 0.03, 0.95), 0.07105, (False, True)),
        ((0.2, 0.25, 0.55), 0.20713, (False, True)),
        ((0.1, 0.8, 0.1), 0.00726, (True, True)),
    ],
)
def test_the_divergence_keeps_what_agrees_with_the_gains(probabilities, divergence, kept):
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    found = target_divergence(logits, logits.argmax(1), COVERAGE)
    close(found, [divergence], tol=6e-6)
    assert tuple(bool(found <= tau) for tau in (0.05, 0.3)) == kept


@pytest.mark.paper
@pytest.mark.parametrize(("largest", "divergence", "kept"), [
    (0.9512, 0.050031, False), (0.9513, 0.049926, True)
])  # fmt: skip
def test_with_diagonal_gains_it_is_the_confidence(largest, divergence, kept):
    rest = (1 - largest) / 2
    logits = torch.tensor([[largest, rest, rest]], dtype=torch.float64).log()
    found = target_divergence(logits, torch.tensor([0]), MIN_RECALL)
    close(found, [divergence])
    assert bool(found <= 0.05) == kept


@pytest.mark.paper
@pytest.mark.parametrize(
    ("tau", "loss", "share"), [(0.05, 0.278296, 1 / 3), (0.3, 1.492487, 2 / 3)]
)
def test_the_weighted_consistency_loss_of_a_step(tau, loss, share):
    model = of_logits(CSST, kl_tau=tau)
    model.gain.copy_(COVERAGE)
    weak = torch.tensor([[0.5, 0.3, 0.2], [0.97, 0.02, 0.01], [0.2, 0.25, 0.55]]).log()
    batch = as_batch(same(1).float(), torch.tensor([2]), weak, same(3).float())
    total, statistics = model.loss_of(batch)
    close(statistics["unlabelled_loss"], loss, tol=2e-6)
    close(statistics["labelled_loss"], 3.642573, tol=2e-6)
    close(total, loss + 3.642573, tol=4e-6)
    assert statistics["kept_share"] == pytest.approx(share)


@pytest.mark.paper
def test_the_best_scores_have_the_weighted_target_as_their_softmax():
    mixture = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = (mixture[0] * hybrid_loss(logits.expand(3, 3), LABELS, COVERAGE)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = [[0.138611, 0.399625, 0.461764]]
    close(logits.softmax(1), expected)
    close(weighted_target(mixture, COVERAGE), expected)


gains = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.floats(0.05, 20), min_size=k * k, max_size=k * k).map(
        lambda values: torch.tensor(values, dtype=torch.float64).view(k, k)
    )
)


@settings(max_examples=40, deadline=None)
@given(gain=gains, factor=st.floats(0.01, 100), seed=st.integers(0, 9))
def test_laws_of_the_hybrid_loss(gain, factor, seed):
    k = len(gain)
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(k, k, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(k)
    losses = hybrid_loss(logits, labels, gain)
    one_hot = F.one_hot(labels, k).double()
    assert_close(hybrid_loss(logits, one_hot, gain), losses)
    assert_close(hybrid_loss(logits, labels, factor * gain), losses)
    soft = torch.rand(1, k, generator=draw, dtype=torch.float64)
    soft /= soft.sum()
    mixture = soft[0] @ hybrid_loss(logits[:1].expand(k, k), labels, gain)
    assert_close(hybrid_loss(logits[:1], soft, gain)[0], mixture)

    mixing, diagonal = decompose(gain)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    q = (logits.detach() - diagonal.log()).softmax(1)
    assert_close(gradient, mixing.sum(1, keepdim=True) * q - mixing)

    only = diagonal.diag()
    expected = F.cross_entropy(logits - diagonal.log(), labels, reduction="none")
    assert_close(hybrid_loss(logits, labels, only), expected)
    likely = -F.cross_entropy(logits, logits.argmax(1), reduction="none")
    assert_close(target_divergence(logits, logits.argmax(1), only), -likely, atol=1e-5, rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    logits = LOGITS.bfloat16()[None]
    with torch.autocast("cpu", torch.bfloat16):
        for targets in (torch.tensor([1]), torch.tensor([[0.2, 0.5, 0.3]])):
            for function in (hybrid_loss, target_divergence):
                found = function(logits, targets, COVERAGE)
                assert found.dtype == torch.float32
                assert_close(found, function(logits.float(), targets, COVERAGE))

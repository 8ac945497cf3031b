"""CSST's losses and multipliers reach their goal where the best classifier is within reach.

Three Gaussians in the plane, long-tailed in training and balanced elsewhere, and a linear softmax
classifier trained with the hybrid loss: no network, no self-training. The bounds are what this
experiment gave for two seeds with an implementation in NumPy.
"""

import numpy as np
import pytest
import torch

from ltbench.methods.csst import hybrid_loss
from ltbench.objectives import Ascent, build_objective, joint_confusion, rates

TRAIN = (7000, 2000, 1000)


def gaussians(third, sizes, draw):
    means = np.array([[0, 0], [1.5, 0], third])
    x = np.concatenate([draw.normal(m, 1, (n, 2)) for m, n in zip(means, sizes, strict=True)])
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    return torch.from_numpy(x), torch.from_numpy(np.repeat(np.arange(3), sizes))


def counts(weights, images, labels):
    return torch.bincount(3 * labels + (images @ weights).argmax(1), minlength=9).view(3, 3)


def train(objective, third, held_out, omega=1.0, rounds=150, remember=True):
    """Return the test set's confusion matrix and the last multipliers."""
    draw = np.random.default_rng(0)
    images, labels = gaussians(third, TRAIN, draw)
    val = gaussians(third, (held_out,) * 3, draw)
    test = gaussians(third, (20_000,) * 3, draw)
    prior = torch.tensor(TRAIN) / sum(TRAIN)
    built = build_objective(objective, torch.tensor(TRAIN))
    weights = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    multipliers = built.initial
    for now in range(rounds):
        if now:
            start = multipliers if remember else built.initial
            joint = joint_confusion(counts(weights.detach(), *val))
            multipliers = built.update(start, joint, Ascent(omega))
        gain = built.gain(prior.double(), prior.double().diag(), multipliers)
        for _ in range(20):
            loss = hybrid_loss(images @ weights, labels, gain).mean()
            (gradient,) = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                weights -= 0.5 * gradient
    return joint_confusion(counts(weights.detach(), *test)), multipliers


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.parametrize("omega", [0.1, 1.0])
def test_min_recall_is_raised_to_its_best(omega):
    recall, _ = rates(train("min_recall", (0.75, 0.8), 2000, omega)[0])
    assert recall.min() == pytest.approx(0.585, abs=0.01)
    assert recall.max() - recall.min() < 0.03
    assert recall.mean() == pytest.approx(0.591, abs=0.01)


@pytest.mark.paper
@pytest.mark.slow
def test_balanced_logit_adjustment_has_the_better_mean_and_a_worse_minimum():
    recall, _ = rates(train("mean_recall", (0.75, 0.8), 2000)[0])
    assert recall.min() == pytest.approx(0.508, abs=0.015)
    assert recall.mean() == pytest.approx(0.593, abs=0.01)


@pytest.mark.paper
@pytest.mark.slow
def test_coverage_is_met_because_multipliers_are_remembered():
    third, target = (0.75, 0.5), 0.95 / 3
    recall, coverage = rates(train("mean_recall", third, 20_000)[0])
    assert coverage.min() == pytest.approx(0.276, abs=0.006)
    assert recall.mean() == pytest.approx(0.558, abs=0.006)

    joint, multipliers = train("mean_recall_coverage", third, 20_000)
    recall, coverage = rates(joint)
    assert coverage.min() == pytest.approx(target, abs=0.006)
    assert recall.mean() == pytest.approx(0.557, abs=0.006)
    assert multipliers == pytest.approx([0, 0, 0.03], abs=0.015)

    _, coverage = rates(train("mean_recall_coverage", third, 20_000, remember=False)[0])
    assert coverage.min() < 0.282

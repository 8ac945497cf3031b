import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import entropy

from ltbench.errors import UserError
from ltbench.metrics.generation import (
    FeatureMoments,
    GeneratedClasses,
    class_groups,
    frechet_distance,
    kl_to_uniform,
    min_class_share,
    per_class_distances,
)

CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
CIFAR10_LT_10 = [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]


@pytest.mark.paper
@pytest.mark.parametrize(
    ("counts", "kl", "exact"),
    [
        (CIFAR10_LT, 0.658766, 0.658857),
        (CIFAR10_LT_10, 0.232030, 0.232056),
        ([7] + [0] * 9, 2.301689, math.log(10)),
        ([3] * 10, 0, 0),
    ],
)
def test_kl_to_uniform(counts, kl, exact):
    assert kl_to_uniform(counts) == pytest.approx(kl, abs=1e-6)
    shares = np.array(counts) / sum(counts)
    assert entropy(shares, np.full(10, 0.1)) == pytest.approx(exact, abs=1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=50).filter(any))
def test_metrics_of_counts(counts):
    assert -1e-9 < kl_to_uniform(counts) < math.log(len(counts)) + 1e-9
    assert min_class_share(counts) == min(counts) / sum(counts) <= 1 / len(counts)


def draw(seed, number, features=6, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, number, p=[0.6, 0.25, 0.1, 0.05])
    mix = np.random.default_rng(seed + 100).normal(size=(features, features))
    vectors = rng.normal(size=(number, features)) @ mix + labels[:, None] + seed
    return torch.tensor(vectors, dtype=torch.float32), torch.tensor(labels)


def sums(features, labels, groups=(0, 0, 0, 0), batch=64):
    metric = FeatureMoments(features.shape[1], np.array(groups))
    for part in range(0, len(features), batch):
        metric.update(features[part : part + batch], labels[part : part + batch])
    return metric.compute()


def oracle(ours, theirs):
    """With numpy's covariance and scipy's matrix root."""
    ours, theirs = ours.double().numpy(), theirs.double().numpy()
    one, other = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    gap = ours.mean(0) - theirs.mean(0)
    return gap @ gap + np.trace(one + other - 2 * sqrtm(one @ other).real)


def test_frechet_distance_against_scipy():
    ours, theirs = draw(0, 500), draw(1, 300)
    a, b = sums(*ours).moments(), sums(*theirs).moments()
    expected = oracle(ours[0], theirs[0])
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert a.count == 500


def test_frechet_distance_of_known_gaussians():
    """|m|^2 + sum (s - t)^2 of diagonal covariances; a singular one needs no correction."""
    from ltbench.metrics.generation import Moments

    one = Moments(9, np.array([3.0, 0, 4]), np.diag([4.0, 9, 0]))
    other = Moments(9, np.zeros(3), np.diag([1.0, 1, 1]))
    assert frechet_distance(one, other) == pytest.approx(25 + 1 + 4 + 1)


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_sums_do_not_depend_on_the_batches(batch):
    features, labels = draw(0, 500)
    one, other = sums(features, labels, batch=500), sums(features, labels, batch=batch)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_moments_far_from_zero_keep_their_covariance():
    features = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) + 1000
    moments = sums(features, torch.zeros(400, dtype=torch.long)).moments()
    np.testing.assert_allclose(moments.covariance, np.cov(features.double().T), rtol=1e-6)


def test_classes_with_few_images_share_a_group():
    assert class_groups(np.array([7, 6, 5, 100]), 6).tolist() == [1, 0, 0, 2]
    assert class_groups(np.array([1, 1]), 6).tolist() == [0, 0]


def test_per_class_distances_are_those_of_the_class_alone():
    ours, theirs = draw(0, 900), draw(1, 600)
    counts = np.bincount(theirs[1])
    groups = class_groups(counts, features=40)  # 40 images are not enough to speak of a class
    assert groups.tolist() == [1, 2, 3, 0]
    found = per_class_distances(sums(*ours, groups), sums(*theirs, groups), groups)
    for c in range(3):
        expected = oracle(ours[0][ours[1] == c], theirs[0][theirs[1] == c])
        assert found[c] == pytest.approx(expected, rel=1e-9)
    assert math.isnan(found[3])
    # All together they are the whole.
    whole = sums(*ours).moments()
    grouped = sums(*ours, groups).moments()
    np.testing.assert_allclose(grouped.covariance, whole.covariance, rtol=1e-12)


def test_a_class_with_too_few_samples_has_no_distance():
    theirs, groups = sums(*draw(1, 600), (1, 2, 3, 0)), np.array([1, 2, 3, 0])
    features, labels = draw(0, 900)
    labels[labels == 1] = 0
    found = per_class_distances(sums(features, labels, groups), theirs, groups)
    assert [math.isnan(v) for v in found] == [False, True, False, True]


@pytest.mark.parametrize(("number", "value", "message"), [(1, 0, "not 1"), (3, math.nan, "finite")])
def test_moments_of_what_has_none(number, value, message):
    features = torch.full((number, 2), float(value))
    with pytest.raises(UserError, match=message):
        sums(features, torch.zeros(number, dtype=torch.long)).moments()


def test_generated_classes():
    probabilities = torch.tensor([[0.7, 0.3, 0], [0.6, 0.2, 0.2], [0, 0.1, 0.9], [0.2, 0.2, 0.6]])
    seen = GeneratedClasses(3)
    for part in (probabilities[:1], probabilities[1:]):
        seen.update(part)
    counts, found = seen.compute()
    assert counts.tolist() == [2, 0, 2]
    assert found["kl_to_uniform"] == pytest.approx(kl_to_uniform([2, 0, 2]))
    assert found["min_class_share"] == 0
    assert found["confidence"] == pytest.approx((0.7 + 0.6 + 0.9 + 0.6) / 4)

"""Intervals, paired bootstrap, Holm and ranks, against scipy, formulas and brute force."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ltbench.bench.score import stats
from ltbench.metrics.catalogue import metrics_from_counts, resampled
from ltbench.metrics.counts import index_groups, shot_groups

fractions = st.floats(0, 1)


@given(st.lists(fractions, min_size=2, max_size=6).filter(lambda v: np.ptp(v) > 1e-6))
def test_t_interval_is_that_of_scipy(values):
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert stats.t_interval(values) == pytest.approx((expected.low, expected.high))


def test_one_value_has_no_interval():
    assert stats.t_interval([0.5]) is None


@given(st.lists(fractions, max_size=8), st.integers(0, 8))
def test_holm_is_its_definition(p, unknown):
    p = np.array([*p, *[np.nan] * unknown])
    comparison = stats.holm(p)
    known = sorted(p[~np.isnan(p)])
    for value, corrected in zip(p, comparison, strict=True):
        if np.isnan(value):
            assert np.isnan(corrected)
            continue
        # The largest of the corrected p-values up to this one's place.
        place = max(n for n, other in enumerate(known) if other <= value)
        first = min(n for n, other in enumerate(known) if other == value)
        expected = max((len(known) - n) * known[n] for n in range(first + 1))
        assert place >= first
        assert corrected == pytest.approx(min(expected, 1))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12).filter(
        lambda pairs: any(n for _, n in pairs)
    ),
    st.integers(0, 10**6),
)
def test_metrics_of_draws_are_the_metrics_of_the_same_counts(pairs, seed):
    hits = np.array([min(pair) for pair in pairs])
    support = np.array([pair[1] for pair in pairs])
    counts = np.random.default_rng(seed).integers(1, 200, len(pairs))
    with np.errstate(invalid="ignore"):
        recalls = hits / support
    groups = {**shot_groups(counts), **index_groups(counts)}
    expected = metrics_from_counts(hits, support, hits, counts)
    comparison = resampled(recalls[None], support, groups)
    assert {"accuracy", "hmean_recall", "gmean_recall", "min_recall"} <= comparison.keys()
    for name, value in comparison.items():
        assert value == pytest.approx([expected[name]]), name


def test_every_draw_has_as_many_images_of_each_class():
    labels = np.array([2, 0, 0, 2, 2, 5])
    sampler = stats.Resampler(labels, 6, replicates=50)
    right = np.ones((1, 6), bool)
    recalls = sampler.recalls(right)
    assert recalls.shape == (1, 50, 6)
    assert np.isnan(recalls[..., [1, 3, 4]]).all()
    assert (recalls[..., [0, 2, 5]] == 1).all()


def test_draws_are_those_of_a_plain_bootstrap():
    """Recalls in each draw vary like binomial shares: a bootstrap of right and wrong is that."""
    labels = np.repeat([0, 1], [200, 50])
    right = np.concatenate([np.arange(200) < 150, np.arange(50) < 10])[None]
    recalls = stats.Resampler(labels, 2, replicates=4000).recalls(right)[0]
    assert recalls.mean(0) == pytest.approx([0.75, 0.2], abs=0.01)
    assert recalls.std(0) == pytest.approx(
        [np.sqrt(0.75 * 0.25 / 200), np.sqrt(0.2 * 0.8 / 50)], rel=0.06
    )


def draws_of(sampler, *correct):
    """Accuracy in each draw, of rows of one seed."""
    recalls = [sampler.recalls(each[None])[0] for each in correct]
    return [resampled(each, sampler.support, {})["accuracy"] for each in recalls]


def test_the_bootstrap_is_paired():
    """Two rows that err on the same images are told apart by few others; their spread cancels."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 250)
    first = draw.random(1000) < 0.7
    second = first.copy()
    second[np.flatnonzero(~first)[:25]] = True  # as good everywhere, better on 25 images
    other = draw.permuted(second.reshape(4, 250), axis=1).ravel()  # as good, on images of its own
    sampler = stats.Resampler(labels, 4)
    same = stats.compare([[first.mean()], [second.mean()]], draws_of(sampler, first, second))
    apart = stats.compare([[first.mean()], [other.mean()]], draws_of(sampler, first, other))
    assert same.p[0, 1] < 1e-4
    assert apart.p[0, 1] > 0.05
    assert same.ranks.tolist() == [2, 1]
    assert same.order.tolist() == [1, 0]


def test_the_error_of_a_difference_is_the_formula_for_stratified_samples():
    draw = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), [400, 100, 500])
    first, second = draw.random((2, 1000)) < [[0.6], [0.65]]
    sampler = stats.Resampler(labels, 3, replicates=4000)
    d = first.astype(float) - second
    variance = sum(
        (np.mean(labels == c) ** 2) * d[labels == c].var() / np.sum(labels == c) for c in range(3)
    )
    comparison = stats.compare([[first.mean()], [second.mean()]], draws_of(sampler, first, second))
    expected = 2 * scipy.stats.norm.sf(abs(d.mean()) / np.sqrt(variance))
    assert comparison.p[0, 1] == pytest.approx(expected, rel=0.15)


def test_without_images_it_is_welchs_test():
    a, b = [0.80, 0.82, 0.81], [0.75, 0.78, 0.74, 0.77]
    comparison = stats.compare([a, b], [None, None])
    assert comparison.p[0, 1] == pytest.approx(scipy.stats.ttest_ind(a, b, equal_var=False).pvalue)


def test_seeds_add_to_the_error_of_images():
    labels = np.repeat([0, 1], 500)
    sampler = stats.Resampler(labels, 2)
    draw = np.random.default_rng(2)
    first, second = draw.random((2, 1000)) < [[0.7], [0.76]]
    draws = draws_of(sampler, first, second)
    one = stats.compare([[0.70], [0.76]], draws).p[0, 1]
    several = stats.compare([[0.66, 0.74], [0.73, 0.79]], draws).p[0, 1]
    assert one < 0.05 < several


@pytest.mark.parametrize("higher", [True, False])
def test_rows_that_cannot_be_told_apart_share_a_rank(higher):
    values = [[0.50, 0.51], [0.80, 0.81], [0.801, 0.809], [0.70, 0.71]]
    comparison = stats.compare(values, [None] * 4, higher_is_better=higher)
    assert comparison.ranks.tolist() == ([4, 1, 1, 3] if higher else [1, 3, 3, 2])


@given(st.lists(st.lists(fractions, min_size=1, max_size=3), min_size=1, max_size=5))
def test_ranks_follow_from_the_p_values(values):
    comparison = stats.compare(values, [None] * len(values))
    means = [np.mean(v) for v in values]
    for i, rank in enumerate(comparison.ranks):
        better = [
            j for j in range(len(values)) if means[j] > means[i] and comparison.p[i, j] < 0.05
        ]
        assert rank == 1 + len(better)
    assert np.array_equal(comparison.p, comparison.p.T, equal_nan=True)
    assert sorted(comparison.order) == list(range(len(values)))
    places = [(comparison.ranks[i], -means[i]) for i in comparison.order]
    assert places == sorted(places)


def test_a_row_without_the_metric_comes_last():
    comparison = stats.compare([[np.nan], [0.5, 0.5], [0.9, 0.91]], [None] * 3)
    assert comparison.ranks.tolist() == [3, 2, 1]
    assert comparison.order.tolist() == [2, 1, 0]


def test_of_equal_rows_none_is_better():
    correct = np.random.default_rng(0).random(300) < 0.5
    sampler = stats.Resampler(np.repeat([0, 1, 2], 100), 3)
    draws = draws_of(sampler, correct, correct, correct)
    comparison = stats.compare([[correct.mean()]] * 3, draws)
    assert comparison.ranks.tolist() == [1, 1, 1]
    assert (comparison.p[~np.eye(3, dtype=bool)] == 1).all()


@pytest.mark.slow
def test_equal_methods_are_told_apart_as_seldom_as_promised():
    """Of rows with the same probabilities, seeds and images alike, 5 % of the tests reject."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 100)
    sampler = stats.Resampler(labels, 5, replicates=300)
    rejected = 0
    for _ in range(300):
        hard = draw.random(500)  # each image has a difficulty, the same for all
        rows = draw.random((2, 3, 500)) < 0.4 + 0.4 * hard
        draws = [
            resampled(sampler.recalls(row), sampler.support, {})["accuracy"].mean(0) for row in rows
        ]
        rejected += stats.compare([row.mean(1) for row in rows], draws).p[0, 1] < 0.05
    assert rejected <= 300 * 0.09

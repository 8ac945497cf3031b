import numpy as np
import torch
from digit_runs import analyze, deit_run
from hypothesis import given
from hypothesis import strategies as st

from ltbench.analysis.rank import feature_rank


@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.integers(1, 30))
def test_the_rank_is_the_least_number_of_singular_values_with_the_energy(seed, threshold, images):
    features = np.random.default_rng(seed).normal(size=(images, 8)) * 2.0 ** -np.arange(8)
    energy = np.linalg.svd(features, compute_uv=False) ** 2
    reached = np.cumsum(energy) >= threshold * energy.sum() * (1 - 1e-9)
    gram = torch.from_numpy(features.T @ features)
    assert feature_rank(gram, threshold) in (
        np.flatnonzero(reached)[0] + 1,
        # at the very threshold both counts are right up to rounding
        np.flatnonzero(np.cumsum(energy) >= threshold * energy.sum())[0] + 1
        if (np.cumsum(energy) >= threshold * energy.sum()).any()
        else 8,
    )


def test_equal_directions_count_alike():
    assert feature_rank(torch.eye(100, dtype=torch.float64), 0.99) == 99
    assert feature_rank(torch.diag(torch.tensor([1.0, 0, 0]).double()), 1.0) == 1


def test_ranks_of_a_student_grow_with_the_threshold_and_stay_below_its_width(
    ltbench, digits_run, tmp_path
):
    folder = deit_run(digits_run)
    words = ("--images", "40", "--batch_size", "9", "--centre")
    most = analyze(ltbench, "rank", folder, tmp_path, *words, "--threshold", "0.999")["rank"]
    half = analyze(ltbench, "rank", folder, tmp_path, *words, "--threshold", "0.5")["rank"]
    assert set(most) == {"CLS", "DIST"}
    for token, ranks in most.items():
        assert len(ranks) == 2
        assert all(1 <= low <= high <= 24 for low, high in zip(half[token], ranks, strict=True))
    assert max(most["CLS"]) > 2


def test_a_threshold_outside_its_range_is_refused(refused, digits_run, tmp_path):
    command = ("analyze", "rank", "--run", deit_run(digits_run), "--output", tmp_path)
    assert "--threshold" in refused(*command, "--device", "cpu", "--threshold", "1.5")

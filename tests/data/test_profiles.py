import math
import random
import struct
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ltbench.data.profiles import (
    PROFILES,
    class_counts,
    imbalance_factor,
    index_hash,
    select,
    split_validation,
)
from ltbench.errors import UserError

CIFAR10 = np.repeat(np.arange(10), 5000)
CIFAR100 = np.repeat(np.arange(100), 500)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("factor", "counts", "total"),
    [
        (10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500], 20431),
        (50, [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100], 13996),
        (100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 12406),
        (200, [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25], 11203),
    ],
)
def test_cifar10_lt_counts(factor, counts, total):
    assert class_counts(5000, 10, factor) == counts
    assert sum(counts) == total


@pytest.mark.paper
@pytest.mark.parametrize(("factor", "total"), [(10, 19573), (50, 12608), (100, 10847), (200, 9502)])
def test_cifar100_lt_totals(factor, total):
    assert sum(class_counts(500, 100, factor)) == total


@pytest.mark.paper
def test_cifar100_lt_counts():
    counts = class_counts(500, 100, 100)
    at = [0, 1, 34, 35, 36, 69, 70, 71, 99]
    assert [counts[c] for c in at] == [500, 477, 102, 98, 93, 20, 19, 18, 5]
    at, half = [0, 1, 25, 35, 36, 50, 70, 71, 75, 90, 99], class_counts(500, 100, 50)
    assert [half[c] for c in at] == [500, 480, 186, 125, 120, 69, 31, 30, 25, 14, 10]
    for factor, groups in ((100, (35, 35, 30)), (50, (41, 41, 18))):
        counts = class_counts(500, 100, factor)
        many, few = sum(n > 100 for n in counts), sum(n < 20 for n in counts)
        assert (many, 100 - many - few, few) == groups


@pytest.mark.paper
def test_truncation_makes_the_real_imbalance_of_cifar100_if200_250():
    counts = class_counts(500, 100, 200)
    assert counts[-1] == 2
    assert imbalance_factor(counts) == 250


@pytest.mark.paper
@pytest.mark.parametrize(
    ("largest", "classes", "totals"),
    [(5000, 10, [27500, 25500, 25250, 25125]), (500, 100, [27500, 25500, 25250, 25100])],
)
def test_step_totals(largest, classes, totals):
    assert [sum(class_counts(largest, classes, f, "step")) for f in (10, 50, 100, 200)] == totals


def test_step_gives_the_odd_class_to_the_tail():
    assert class_counts(90, 5, 9, "step") == [90, 90, 10, 10, 10]


def test_balanced():
    assert class_counts(7, 3, 100, "balanced") == [7, 7, 7]


def test_pareto_is_a_power_law_of_the_rank():
    counts = np.array(class_counts(10**9, 50, 200, "pareto"))
    slope, intercept = np.polyfit(np.log(np.arange(1, 51)), np.log(counts), 1)
    assert slope == pytest.approx(-math.log(200) / math.log(50), rel=1e-6)
    assert math.exp(intercept) == pytest.approx(10**9, rel=1e-6)
    assert counts[-1] == 10**9 // 200


profiles = {
    "kind": st.sampled_from(sorted(PROFILES)),
    "largest": st.integers(1, 3000),
    "classes": st.integers(2, 300),
    "factor": st.floats(1, 500),
}


@given(**profiles)
def test_counts_run_from_the_largest_down_to_its_share(kind, largest, classes, factor):
    last = largest if kind == "balanced" else int(largest * (1 / factor))
    assume(last >= 1)
    counts = class_counts(largest, classes, factor, kind)
    assert len(counts) == classes
    assert (counts[0], counts[-1]) == (largest, last)
    assert counts == sorted(counts, reverse=True)
    assert all(type(n) is int for n in counts)


@given(
    st.sampled_from(["exp", "step", "pareto"]),
    st.integers(1, 3000),
    st.integers(2, 50),
    st.floats(1.01, 50),
)
def test_the_factor_that_the_error_names_works(kind, largest, classes, excess):
    factor = largest * excess
    with pytest.raises(UserError) as error:
        class_counts(largest, classes, factor, kind)
    limit = int(str(error.value).rstrip(".").rsplit(" ", 1)[1])
    assert limit >= largest - 1
    assert class_counts(largest, classes, limit, kind)[-1] == 1


def test_a_class_without_images_is_named_with_the_counts():
    with pytest.raises(UserError, match=r"class 4 .* counts 20, 8, 4, 1, 0 ") as error:
        class_counts(20, 5, 25)
    assert "at most 20" in str(error.value)


def test_many_counts_are_abbreviated():
    with pytest.raises(UserError, match=r"counts 50, 49, 49, 49, \.\.\., 0, 0, 0, 0 for") as error:
        class_counts(50, 8000, 51)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("factor", [0.99, 0, -10, math.nan, math.inf])
@pytest.mark.parametrize("kind", PROFILES)
def test_factor_below_one_is_refused(kind, factor):
    with pytest.raises(UserError, match="imbalance factor"):
        class_counts(5, 3, factor, kind)


@pytest.mark.parametrize(("largest", "classes"), [(0, 10), (5, 1), (-1, 10)])
def test_sizes_out_of_range_are_refused(largest, classes):
    with pytest.raises(UserError, match="profile"):
        class_counts(largest, classes, 1)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'pareto'"):
        class_counts(10, 3, 1, "paretto")


@pytest.mark.paper
def test_cifar10_subset_of_seed_0():
    picked = select(CIFAR10, class_counts(5000, 10, 100))
    assert len(picked) == 12406
    assert picked[:8].tolist() == [398, 3833, 4836, 4572, 636, 2545, 1161, 2230]
    second = picked[5000:5008] - 5000
    assert second.tolist() == [597, 332, 521, 3935, 4800, 1102, 4304, 1826]
    assert (picked[-50:-44] - 9 * 5000).tolist() == [2204, 3816, 2206, 2507, 1926, 4765]


@pytest.mark.paper
def test_cifar100_subset_of_seed_0():
    picked = select(CIFAR100, class_counts(500, 100, 100))
    assert picked[:8].tolist() == [90, 254, 283, 445, 461, 15, 316, 489]
    assert (picked[-5:] - 99 * 500).tolist() == [348, 153, 363, 361, 299]


labels_of = st.lists(st.integers(0, 5), min_size=1, max_size=80)
seeds = st.integers(0, 2**32 - 1)


@given(labels_of, seeds, st.data())
def test_select_is_the_loop_of_the_field(labels, seed, data):
    labels = np.array(labels)
    counts = [data.draw(st.integers(0, n)) for n in np.bincount(labels, minlength=6).tolist()]
    generator, expected = np.random.RandomState(seed), []
    for c, count in enumerate(counts):
        members = np.where(labels == c)[0]
        generator.shuffle(members)
        expected.extend(members[:count].tolist())
    picked = select(labels, counts, seed)
    assert picked.dtype == np.int64
    assert picked.tolist() == expected


def test_natural_takes_every_labelled_image():
    assert select([2, -1, 0, 2, -1], None).tolist() == [0, 2, 3]


def test_unlabelled_images_are_never_picked():
    assert sorted(select([-1, 0, -1, 1, 0], [2, 1])) == [1, 3, 4]


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(UserError, match=r"class 1 has 2 .* 3"):
        select([0, 1, 1, 0, 0], [3, 3])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_subset_seed_out_of_range(seed):
    with pytest.raises(UserError, match="seed"):
        select([0, 1], [1, 1], seed)


@given(labels_of, seeds, st.floats(0.01, 0.99), st.randoms(use_true_random=False))
def test_split_is_a_stratified_partition_whatever_the_order(labels, seed, fraction, shuffler):
    labels = np.array(labels)
    indices = np.arange(len(labels))[:: shuffler.choice([1, 2, 3])].tolist()
    train, val = split_validation(labels, indices, fraction, seed)
    assert sorted([*train, *val]) == indices
    assert train.dtype == val.dtype == np.int64
    assert train.tolist() == sorted(train)
    assert val.tolist() == sorted(val)
    sizes = np.bincount(labels[indices], minlength=6)
    in_val = np.bincount(labels[val], minlength=6)
    for n, v in zip(sizes.tolist(), in_val.tolist(), strict=True):
        if n < 2:
            assert v == 0
        else:
            assert 1 <= v <= n - 1
            assert abs(v - fraction * n) <= 0.5 or v in (1, n - 1)
    shuffler.shuffle(indices)
    again = split_validation(labels, indices, fraction, seed)
    assert [part.tolist() for part in again] == [train.tolist(), val.tolist()]


def test_split_depends_on_the_seed():
    splits = [split_validation(CIFAR100, range(50000), 0.1, seed)[1].tolist() for seed in range(3)]
    assert splits[0] != splits[1] != splits[2]
    assert [len(val) for val in splits] == [5000] * 3


@pytest.mark.parametrize(
    ("fraction", "seed"), [(0, 0), (1, 0), (-0.1, 0), (math.nan, 0), (0.1, -1)]
)
def test_split_arguments_out_of_range(fraction, seed):
    with pytest.raises(UserError, match="validation"):
        split_validation([0, 0], [0, 1], fraction, seed)


@given(st.lists(st.integers(0, 2**40)))
def test_index_hash_is_of_little_endian_int64(indices):
    packed = struct.pack(f"<{len(indices)}q", *indices)
    assert index_hash(indices) == sha256(packed).hexdigest()
    assert index_hash(np.array(indices, dtype=">i8")) == sha256(packed).hexdigest()


def test_imbalance_factor():
    assert imbalance_factor([10, 4, 5]) == 2.5
    assert imbalance_factor([10, 0]) == math.inf


def test_global_generators_are_left_alone():
    def states():
        return random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]

    before = states()
    picked = select(CIFAR10, class_counts(50, 10, 10), 3)
    split_validation(CIFAR10, picked, 0.3, 3)
    assert states() == before

"""The published semi-supervised protocols: their counts, disjoint parts, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.data.protocols import NaturalProtocol, PaperProtocol, ReleasedProtocol
from ltbench.errors import UserError

LABELLED = [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
UNLABELLED = [3000, 1798, 1078, 646, 387, 232, 139, 83, 50, 30]


class Labels:
    """A source of labels alone: ``sizes`` images of each class in each split, shuffled."""

    display_name = "Labels"

    def __init__(self, classes=10, unlabelled=0, **sizes):
        self.num_classes = classes
        self.class_names = [f"class{c}" for c in range(classes)]
        self._labels = {
            name: np.random.default_rng(0).permutation(np.repeat(np.arange(classes), size))
            for name, size in sizes.items()
        }
        if unlabelled:
            self._labels["unlabelled"] = np.full(unlabelled, -1)

    def has(self, split):
        return split in self._labels

    def labels(self, split):
        return self._labels[split]


CIFAR10 = Labels(train=5000, test=1000)
CIFAR100 = Labels(100, train=500, test=100)


def counts(source, protocol, seed=0):
    """True images of each class in each split."""
    splits = protocol.split(source, seed)
    labels = {name: source.labels(split.part)[split.indices] for name, split in splits.items()}
    return SimpleNamespace(
        **{k: np.bincount(v, minlength=source.num_classes).tolist() for k, v in labels.items()}
    )


# --- the numbers of the papers' code ---


@pytest.mark.paper
@pytest.mark.parametrize(
    ("m1", "rho_u", "unlabelled"),
    [(3000, 100, UNLABELLED), (3000, 1, [3000] * 10), (30, 0.01, UNLABELLED[::-1])],
)
def test_the_released_counts_of_cifar10(m1, rho_u, unlabelled):
    found = counts(CIFAR10, ReleasedProtocol(m1=m1, rho_u=rho_u))
    assert (found.train, sum(found.train)) == (LABELLED, 3720)
    assert found.unlabelled == unlabelled
    assert found.val == [500] * 10
    assert found.test == [1000] * 10


@pytest.mark.paper
def test_the_released_counts_of_cifar100_are_free_of_float_rounding():
    found = counts(CIFAR100, ReleasedProtocol(150, 10, 300, 10, val_per_class=50))
    assert (found.train[:4], found.train[-4:]) == ([150, 146, 143, 139], [16, 15, 15, 15])
    assert (found.unlabelled[:3], found.unlabelled[-3:]) == ([300, 293, 286], [31, 30, 30])
    assert (sum(found.train), sum(found.unlabelled)) == (5835, 11720)
    assert found.val == [50] * 100


@pytest.mark.paper
@pytest.mark.parametrize(
    ("rho", "total", "expected"),
    [
        (10, 1835, [450, 348, 269, 208, 161, 125, 96, 75, 58, 45]),
        (100, 1111, [450, 269, 161, 96, 58, 34, 20, 12, 7, 4]),
    ],
)
def test_the_counts_of_stl10_with_validation_held_out_first(rho, total, expected):
    source = Labels(train=500, test=800, unlabelled=1000)
    protocol = ReleasedProtocol(450, rho, m1=None, val_per_class=50)
    splits = protocol.split(source, 0)
    labels = source.labels("train")
    assert np.bincount(labels[splits["train"].indices]).tolist() == expected
    assert sum(expected) == total
    assert splits["unlabelled"].part == "unlabelled"
    assert sorted(splits["unlabelled"].indices) == list(range(1000))
    assert np.bincount(splits["val"].labels).tolist() == [50] * 10
    assert not set(splits["val"].indices) & set(splits["train"].indices)


@pytest.mark.paper
def test_the_released_counts_of_imagenet100():
    source = Labels(100, train=900, val=25, test=25)
    protocol = ReleasedProtocol(433, 10, 866, 10, include_labelled=True)
    found = counts(source, protocol)
    assert (found.train[:3], found.train[-3:]) == ([433, 423, 413], [45, 44, 43])
    assert (sum(found.train), sum(found.unlabelled)) == (16945, 33939)
    assert found.val == [25] * 100  # the source's own
    splits = protocol.split(source, 0)
    assert set(splits["train"].indices) < set(splits["unlabelled"].indices)
    with pytest.raises(UserError, match=r"433 labelled \+ 866 unlabelled"):
        counts(source, ReleasedProtocol(433, 10, 866, 10))


@pytest.mark.paper
def test_the_papers_protocol_cuts_one_long_tail_and_halves_the_test_set():
    found = counts(CIFAR10, PaperProtocol())
    tail = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert found.train == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert np.add(found.train, found.unlabelled).tolist() == tail
    assert (sum(found.train), sum(tail)) == (2478, 12406)
    assert found.val == found.test == [500] * 10
    large = counts(CIFAR100, PaperProtocol(500, 10, 4))
    assert (large.train[0], large.train[-1]) == (100, 10)
    assert sum(large.train) + sum(large.unlabelled) == 19573


def test_the_natural_protocol_shares_out_what_there_is():
    source = Labels(4, train=40)
    found = counts(source, NaturalProtocol(labelled=0.25, val=0.1))
    assert (found.val, found.train, found.unlabelled) == ([4] * 4, [9] * 4, [27] * 4)
    none_held_out = counts(source, NaturalProtocol(labelled=0.25, val=0))
    assert not hasattr(none_held_out, "val")
    assert none_held_out.train == [10] * 4


def test_the_natural_protocol_takes_a_folder_of_unlabelled_images():
    source = Labels(4, train=40, val=3, unlabelled=7)
    splits = NaturalProtocol(labelled=None).split(source, 0)
    assert len(splits["train"].labels) == 160
    assert splits["val"].part == "val"
    assert splits["unlabelled"].part == "unlabelled"
    assert splits["unlabelled"].labels.tolist() == [-1] * 7


# --- what holds for all ---

PROTOCOLS = st.sampled_from(
    [
        ReleasedProtocol(50, 10, 100, 10, 20),
        ReleasedProtocol(50, 10, 10, 0.1, 0),
        PaperProtocol(150, 10, 3),
        NaturalProtocol(0.3, 0.2),
    ]
)


@settings(max_examples=30, deadline=None)
@given(protocol=PROTOCOLS, seed=st.integers(0, 2**32))
def test_parts_are_disjoint_and_a_function_of_the_seed(protocol, seed):
    source = Labels(train=180, test=30)
    splits = protocol.split(source, seed)
    for part in ("train", "test"):
        indices = np.concatenate([s.indices for s in splits.values() if s.part == part])
        assert len(set(indices)) == len(indices)
    again = protocol.split(source, seed)
    other = protocol.split(source, seed + 1)
    for name, split in splits.items():
        assert np.array_equal(split.indices, again[name].indices)
        assert np.array_equal(split.labels, again[name].labels)
        if name != "unlabelled":
            assert np.array_equal(split.labels, source.labels(split.part)[split.indices])
    assert not np.array_equal(splits["train"].indices, other["train"].indices)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_unlabelled_prior_leaves_labelled_and_validation_images_alone(seed):
    reference = ReleasedProtocol().split(CIFAR10, seed)
    for m1, rho_u in ((3000, 1), (30, 0.01), (100, 2)):
        splits = ReleasedProtocol(m1=m1, rho_u=rho_u).split(CIFAR10, seed)
        for name in ("train", "val", "test"):
            assert np.array_equal(splits[name].indices, reference[name].indices)


def test_neither_labels_nor_order_of_the_unlabelled_split_tell_the_class():
    split = ReleasedProtocol().split(CIFAR10, 0)["unlabelled"]
    assert set(split.labels) == {-1}
    labels = CIFAR10.labels("train")[split.indices]
    assert abs(np.corrcoef(labels, np.arange(len(labels)))[0, 1]) < 0.05


# --- what is refused ---


def test_a_class_that_is_too_small_is_named_with_what_was_asked():
    with pytest.raises(UserError, match="class0 has 5000 train") as told:
        ReleasedProtocol(n1=2000).split(CIFAR10, 0)
    assert "2000 labelled + 3000 unlabelled + 500 val" in str(told.value)


@pytest.mark.parametrize(
    ("protocol", "source", "message"),
    [
        (
            ReleasedProtocol(rho_u=5000),
            CIFAR10,
            r"m1 3000 and protocol\.rho_u 5000",
        ),
        (ReleasedProtocol(rho_l=-1), CIFAR10, r"protocol\.rho_l -1"),
        (ReleasedProtocol(m1=None), CIFAR10, "unlabelled"),
        (NaturalProtocol(None), CIFAR10, "unlabelled"),
        (PaperProtocol(rho=2000), CIFAR10, "class9 .*labelled"),
        (NaturalProtocol(0.9, 0), Labels(2, train=2), "unlabelled"),
    ],
)
def test_a_class_without_labelled_or_unlabelled_images_is_refused(protocol, source, message):
    with pytest.raises(UserError, match=message):
        protocol.split(source, 0)


@pytest.mark.parametrize("shares", [{"labelled": 0}, {"labelled": 1}, {"val": 1}, {"val": -0.1}])
def test_shares_out_of_range(shares):
    with pytest.raises(UserError, match="share"):
        NaturalProtocol(**shares)


@pytest.mark.parametrize("mu", [0, -1, -3])
def test_a_division_without_unlabelled_images(mu):
    with pytest.raises(UserError, match=rf"protocol\.mu is {mu}"):
        PaperProtocol(mu=mu)


def test_labelled_images_among_none_that_are_drawn():
    with pytest.raises(UserError, match="include_labelled"):
        ReleasedProtocol(m1=None, include_labelled=True)


def test_a_seed_of_no_generator():
    with pytest.raises(UserError, match=r"data\.subset_seed is -1"):
        ReleasedProtocol().split(CIFAR10, -1)

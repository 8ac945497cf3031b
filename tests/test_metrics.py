import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean, hmean
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
)

from ltbench.errors import UserError
from ltbench.metrics import LongTailMetrics
from ltbench.metrics.catalogue import metrics_from_counts
from ltbench.metrics.counts import index_groups, shot_groups

NAMES = {
    *("accuracy", "mean_recall", "hmean_recall", "gmean_recall", "min_recall", "min_coverage"),
    *("min_ht_recall", "many_recall", "medium_recall", "few_recall", "head_recall", "mid_recall"),
    *("tail_recall", "dead_classes", "ece"),
}


def draw(seed, samples, classes, skill=1.0):
    """Scores that are right more often than chance; later classes are rarer."""
    rng = np.random.default_rng(seed)
    prior = 0.7 ** np.arange(classes)
    targets = rng.choice(classes, samples, p=prior / prior.sum())
    scores = rng.normal(size=(samples, classes)) + skill * np.eye(classes)[targets]
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(targets)


def evaluate(scores, targets, **kwargs):
    metric = LongTailMetrics(scores.shape[1], **kwargs)
    metric.update(scores, targets)
    return {name: float(value) for name, value in metric.compute().items()}


def slow_ece(scores, targets, bins):
    total = 0.0
    p = scores.double().softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == targets.numpy()
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += len(inside) / len(targets) * gap
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("classes", [2, 10, 23])
def test_against_sklearn_scipy_and_a_slow_loop(classes, bins):
    scores, targets = draw(0, 3000, classes, skill=2.5)
    targets[:classes] = torch.arange(classes)  # each class is there, and predicted right once
    scores[:classes] += 9 * torch.eye(classes)
    train_counts = np.geomspace(500, 5, classes).astype(int)
    metrics = evaluate(scores, targets, train_counts=train_counts, bins=bins)
    y, p = targets.numpy(), scores.argmax(1).numpy()
    recall = recall_score(y, p, average=None)
    assert metrics.keys() == NAMES

    expected = {
        "accuracy": accuracy_score(y, p),
        "mean_recall": balanced_accuracy_score(y, p),
        "hmean_recall": hmean(recall),
        "gmean_recall": gmean(recall),
        "min_recall": recall.min(),
        "min_coverage": confusion_matrix(y, p, normalize="all").sum(0).min(),
        "dead_classes": 0,
        "ece": slow_ece(scores, targets, bins),
    }
    for name, mask in {
        "many": train_counts > 100,
        "medium": (train_counts <= 100) & (train_counts >= 20),
        "few": train_counts < 20,
    }.items():
        expected[f"{name}_recall"] = recall[mask].mean() if mask.any() else np.nan
    if classes >= 10:
        head = int(0.9 * classes)
        expected["min_ht_recall"] = min(recall[:head].mean(), recall[head:].mean())
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_groups_follow_the_train_counts_not_the_labels():
    scores, targets = draw(1, 2000, 10)
    train_counts = np.array([10, 20, 100, 101, 5, 20, 4000, 300, 100, 19])
    recall = recall_score(targets, scores.argmax(1), average=None, zero_division=0)
    metrics = evaluate(scores, targets, train_counts=train_counts)
    # Decreasing, ties in the order of labels: 6 7 3 | 2 8 1 5 | 9 0 4.
    assert metrics["head_recall"] == pytest.approx(recall[[6, 7, 3]].mean())
    assert metrics["mid_recall"] == pytest.approx(recall[[2, 8, 1, 5]].mean())
    assert metrics["tail_recall"] == pytest.approx(recall[[9, 0, 4]].mean())
    assert metrics["min_ht_recall"] == pytest.approx(min(np.delete(recall, 4).mean(), recall[4]))
    assert metrics["many_recall"] == pytest.approx(recall[[3, 6, 7]].mean())
    assert metrics["medium_recall"] == pytest.approx(recall[[1, 2, 5, 8]].mean())
    assert metrics["few_recall"] == pytest.approx(recall[[0, 4, 9]].mean())


def test_without_train_counts_labels_are_the_order():
    scores, targets = draw(2, 2000, 10)
    metrics = evaluate(scores, targets)
    for name in ("many_recall", "medium_recall", "few_recall"):
        assert np.isnan(metrics.pop(name))
    ranked = evaluate(scores, targets, train_counts=range(10, 0, -1))
    assert metrics == {name: ranked[name] for name in metrics}


def test_shot_groups_of_cifar100_lt():
    counts = [int(500 * 0.01 ** (c / 99)) for c in range(100)]
    groups = shot_groups(counts)
    assert [len(group) for group in groups.values()] == [35, 35, 30]
    assert groups["many"].tolist() == list(range(35))
    assert groups["few"].tolist() == list(range(70, 100))


@pytest.mark.parametrize(
    ("classes", "head", "mid"),
    [
        (10, range(3), range(3, 7)),
        (100, range(30), range(30, 70)),
        (8142, range(2443), range(2443, 5699)),
        (20, range(6), range(6, 14)),
        (7, range(2), range(2, 5)),
        (2, range(1), range(1, 1)),
        (1, range(0), range(1)),
    ],
)
def test_index_groups(classes, head, mid):
    groups = index_groups(classes)
    assert groups["head"].tolist() == list(head)
    assert groups["mid"].tolist() == list(mid)
    assert groups["tail"].tolist() == list(range(mid.stop, classes))
    ties = index_groups(torch.ones(classes, dtype=torch.long))
    assert all(np.array_equal(ties[name], groups[name]) for name in groups)


def test_groups_have_the_sizes_of_the_data_set():
    groups = index_groups(100, (36, 35, 29))
    assert [len(group) for group in groups.values()] == [36, 35, 29]
    scores, targets = draw(1, 3000, 10)
    recall = recall_score(targets, scores.argmax(1), average=None, zero_division=0)
    metrics = evaluate(scores, targets, head_mid_tail=(1, 2, 7))
    assert metrics["head_recall"] == pytest.approx(recall[0])
    assert metrics["mid_recall"] == pytest.approx(recall[1:3].mean())
    assert metrics["tail_recall"] == pytest.approx(recall[3:].mean())


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200))
def test_groups_partition_the_classes(counts):
    for groups in (shot_groups(counts), index_groups(counts)):
        assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(len(counts)))


def test_a_class_never_predicted_right_has_recall_zero():
    metrics = metrics_from_counts([8, 0, 0, 4], [10, 10, 5, 5], [20, 6, 0, 4])
    assert metrics["hmean_recall"] == metrics["gmean_recall"] == metrics["min_recall"] == 0
    assert metrics["dead_classes"] == 2
    assert metrics["min_coverage"] == 0
    assert metrics["mean_recall"] == pytest.approx((0.8 + 0.8) / 4)
    assert np.isnan(metrics["min_ht_recall"])  # below 10 classes


def test_a_class_without_test_images_is_left_out():
    present = metrics_from_counts([8, 3], [10, 5], [10, 5])
    absent = metrics_from_counts([8, 0, 3], [10, 0, 5], [10, 0, 5])
    for name in ("accuracy", "mean_recall", "hmean_recall", "gmean_recall", "min_recall"):
        assert absent[name] == present[name]
    assert absent["dead_classes"] == 0
    assert absent["min_coverage"] == 0  # coverage is over all classes
    metric = LongTailMetrics(3)
    metric.update(torch.eye(3)[[0, 2]], torch.tensor([0, 2]))
    np.testing.assert_array_equal(metric.per_class_recall(), [1, np.nan, 1])


def test_a_group_without_test_images_is_nan():
    support = np.array([5] * 9 + [0])
    metrics = metrics_from_counts(support, support, support, [200] * 9 + [1])
    assert np.isnan(metrics["min_ht_recall"])
    assert np.isnan(metrics["few_recall"])
    assert np.isnan(metrics["medium_recall"])
    assert metrics["many_recall"] == metrics["tail_recall"] == 1


def test_single_class():
    metrics = evaluate(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), train_counts=[50])
    for name in ("accuracy", "mean_recall", "hmean_recall", "gmean_recall", "min_coverage"):
        assert metrics[name] == 1
    assert metrics["medium_recall"] == 1
    assert metrics["ece"] == 0


STATES = (
    *("true_positives", "support", "predicted"),
    *("bin_counts", "bin_hits", "bin_confidences", "non_finite"),
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    ranks=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_partition_gives_the_same_bits(seed, cuts, ranks, dtype):
    scores, targets = draw(seed, 60, 12, skill=3.0)
    scores = scores.to(dtype)
    whole = LongTailMetrics(12)
    whole.update(scores, targets)

    parts = [LongTailMetrics(12) for _ in range(ranks)]
    edges = [0, *sorted(cuts), 60]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        parts[i % ranks].update(scores[start:stop], targets[start:stop])
    merged = parts[-1]
    for part in parts[:-1]:
        merged.merge_state(part)
    merged._update_count = 1  # a rank may hold nothing before the merge

    for name in STATES:
        assert torch.equal(getattr(merged, name), getattr(whole, name)), name
    before, expected = merged.compute(), whole.compute()
    assert all(torch.equal(before[k].isnan(), expected[k].isnan()) for k in expected)
    assert all(torch.equal(before[k].nan_to_num(), expected[k].nan_to_num()) for k in expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bins=st.integers(1, 30), skill=st.floats(0, 30))
def test_ece_bins(seed, bins, skill):
    # Many confidences round to 1 and have to fall into the last bin.
    scores, targets = draw(seed, 50, 4, skill=skill)
    metrics = evaluate(scores, targets, bins=bins)
    assert metrics["ece"] == pytest.approx(slow_ece(scores, targets, bins), abs=1e-5)


def test_ece_bins_are_closed_on_the_right():
    metric = LongTailMetrics(2, bins=4)
    metric.update(torch.zeros(3, 2), torch.tensor([0, 1, 1]))  # confidence 1/2 exactly
    assert metric.bin_counts.tolist() == [0, 3, 0, 0]
    assert metric.bin_hits.tolist() == [0, 1, 0, 0]
    assert float(metric.compute()["ece"]) == pytest.approx(abs(1 / 3 - 1 / 2))


@pytest.mark.parametrize("row", [[np.nan, 0, 1], [0, np.inf, 1], [-np.inf] * 3])
def test_scores_that_are_not_finite_give_no_number(row):
    metric = LongTailMetrics(3)
    metric.update(torch.tensor([[1.0, 0, 0], row]), torch.tensor([0, 0]))
    for call in (metric.compute, metric.per_class_recall):
        with pytest.raises(UserError, match="1 of 2 samples"):
            call()
    metric.reset()
    metric.update(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]))
    assert metric.compute()["accuracy"] == 1


def test_a_masked_class_is_not_an_error():
    metrics = evaluate(torch.tensor([[1.0, 0, -torch.inf]]), torch.tensor([0]))
    assert metrics["accuracy"] == 1


def test_no_samples():
    metric = LongTailMetrics(3)
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(UserError, match="test images"):
        metric.compute()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        LongTailMetrics(3).update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(B,\)"):
        LongTailMetrics(3).update(torch.zeros(3, 3), torch.zeros(3, 3))
    with pytest.raises(UserError, match="train_counts"):
        LongTailMetrics(3, train_counts=[1, 2])


def test_memory_is_linear_in_the_classes():
    metric = LongTailMetrics(8142, train_counts=np.arange(8142, 0, -1))
    for seed in range(3):
        metric.update(torch.randn(4, 8142), torch.arange(seed, seed + 4))
    assert sum(getattr(metric, name).numel() for name in STATES) == 3 * 8142 + 3 * 15 + 1
    assert metric.compute().keys() == NAMES


def test_states_survive_inference_mode_and_pickling():
    scores, targets = draw(3, 20, 5)
    metric = LongTailMetrics(5, train_counts=[9, 8, 7, 6, 5])
    with torch.inference_mode():
        metric.reset()
        metric.update(scores, targets)
    metric.update(scores, targets)
    assert int(metric.support.sum()) == 40
    copied = pickle.loads(pickle.dumps(metric))
    assert copied.compute()["accuracy"] == metric.compute()["accuracy"]


def test_ranks_with_unequal_shares_give_the_bits_of_one():
    scores, targets = draw(4, 100, 6)
    whole = LongTailMetrics(6)
    whole.update(scores, targets)
    ranks = [LongTailMetrics(6) for _ in range(3)]
    shares = [slice(0, 37), slice(37, 100), slice(100, 100)]
    for rank, share in zip(ranks, shares, strict=True):
        rank.update(scores[share], targets[share])
    # What an all-gather would return, state by state in the order of the sync.
    gathered = {name: [getattr(rank, name) for rank in ranks] for name in STATES}
    for rank, share in zip(ranks, shares, strict=True):
        order = iter(STATES * 2)
        rank.distributed_available_fn = lambda: True
        rank.dist_sync_fn = lambda state, group, order=order: gathered[next(order)]
        np.testing.assert_array_equal(rank.per_class_recall(), whole.per_class_recall())
        for name, value in rank.compute().items():
            np.testing.assert_array_equal(value, whole.compute()[name])
        assert int(rank.support.sum()) == len(targets[share])  # the rank's own state is back


def test_update_reads_nothing_back_from_the_device():
    metric = LongTailMetrics(5).to("meta")  # has no values, so that reading one fails
    targets = torch.zeros(4, dtype=torch.long, device="meta")
    metric.update(torch.zeros(4, 5, device="meta"), targets)
    assert metric.support.is_meta

"""CSST: when multipliers move, by how much, and on which images."""

import numpy as np
import pytest
import torch
from csst_digits import COVERAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from semi_digits import Traces, build, of_logits
from support import fit, weights
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.methods.csst import (
    CSST,
    PUBLISHED_BUDGET,
    update_steps,
)
from ltbench.objectives import OBJECTIVES, build_objective


@pytest.mark.paper
def test_the_published_updates_and_their_budget():
    steps = update_steps([(0.0, 10_000), (0.5, 1000)], 2**20)
    first_half = [step for step in steps if step < 2**19]
    assert first_half == list(range(10_000, 2**19, 10_000))
    assert [step for step in steps if step >= 2**19] == list(range(525_000, 2**20, 1000))
    assert 0.1 * len(steps) == pytest.approx(PUBLISHED_BUDGET)


@settings(max_examples=50, deadline=None)
@given(every=st.integers(1, 40), steps=st.integers(1, 300))
def test_one_interval(every, steps):
    assert update_steps(every, steps) == [s for s in range(1, steps) if s % every == 0]


@pytest.mark.parametrize(
    "interval", [0, [], [(0.1, 5)], [(0, 5), (0, 5)], [(0, 5), (1.5, 5)], [(0, 0)]]
)
def test_intervals_that_have_no_meaning(interval):
    with pytest.raises(UserError, match="update_interval"):
        build(CSST, update_interval=interval)


class Multipliers(Callback):
    """What the multipliers were after each step, and the counts that moved them."""

    def __init__(self, model):
        self.seen, self.counts = [], []
        confusion = model.confusion

        def count(network, split="val"):
            self.counts.append((self.by_hand(model, network), confusion(network, split)))
            return self.counts[-1][1]

        model.confusion = count

    @staticmethod
    def by_hand(model, network):
        counts = np.zeros((10, 10), dtype=int)
        split = model.data.splits["val"]
        images = model.data.normalise(model.data.source.images(split.part, split.indices))
        network.eval()
        with torch.no_grad():
            predicted = network(images).argmax(1).numpy()
        network.train()
        np.add.at(counts, (split.labels, predicted), 1)
        assert network is not model.net
        return counts

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append(pl_module.multipliers.clone())


def test_multipliers_follow_the_averaged_network_on_the_held_out_set():
    model, data = build(CSST, update_interval=3, omega=0.5, data={"steps_per_epoch": 10})
    watch = Multipliers(model)
    fit(model, data, epochs=1, callbacks=[watch])
    expected = np.full(10, 0.1)
    for step, found in enumerate(watch.seen):
        if step in (3, 6, 9):
            by_hand, counts = watch.counts[step // 3 - 1]
            assert np.array_equal(by_hand, counts)
            expected *= np.exp(-0.5 * by_hand.diagonal() / by_hand.sum(1))
            expected /= expected.sum()
        assert found.numpy() == pytest.approx(expected, rel=1e-9)
    assert len(watch.counts) == 3
    prior = model.class_counts.double() / model.class_counts.sum()
    assert_close(model.gain, (model.multipliers / prior).diag())


def test_a_shorter_run_keeps_the_budget():
    model, data = build(CSST, update_interval=2, budget=30.0)
    fit(model, data, epochs=2)  # 12 steps, with updates before 2, 4, 6, 8, 10
    assert model.rule.rate == 30.0 / 5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name):
    model, data = build(CSST, objective=name, update_interval=2, omega=1.0)
    start = model.multipliers.clone()
    fit(model, data, epochs=1)
    assert model.gain.isfinite().all()
    assert weights(model).isfinite().all()
    built = build_objective(name, torch.from_numpy(data.class_counts))
    assert model.multipliers.shape == built.initial.shape
    if len(start):
        assert not torch.equal(model.multipliers, start)


def first_gain(**options):
    """The gains before the first update, and the labelled images of each class."""
    found = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            found.append(pl_module.gain.clone())

    model, data = build(CSST, update_interval=5, **options)
    fit(model, data, epochs=1, callbacks=[Look()])
    return found[0], torch.from_numpy(data.class_counts).double()


def test_coverage_constraints_may_start_from_zero():
    gain, counts = first_gain(objective="mean_recall_coverage", lambda_init=0.0)
    assert_close(gain, (counts.sum() / (10 * counts)).diag())
    gain, counts = first_gain(objective="mean_recall_coverage")
    assert_close(gain, (counts.sum() / (10 * counts)).diag() + 0.1)


def test_head_and_tail_are_those_of_the_labelled_images():
    gain, counts = first_gain(objective="min_ht_recall")
    sizes = torch.tensor([9.0] * 9 + [1.0])
    assert_close(gain, (0.5 / sizes * counts.sum() / counts).diag())


@pytest.mark.parametrize(
    ("objective", "monitor"),
    [
        ("min_recall", "val/min_recall"),
        ("hmean_recall_coverage", "val/hmean_recall"),
        ("mean_recall_ht_coverage", "val/mean_recall"),
        ("min_ht_recall", "val/min_ht_recall"),
    ],
)
def test_the_best_epoch_is_that_of_the_objective(objective, monitor):
    assert build(CSST, objective=objective)[0].monitor == monitor


def test_a_run_too_short_for_an_update_says_so():
    model, data = build(CSST)
    fit(model, data, epochs=2)
    assert "no multiplier was updated" in model.deviations[-1]
    model, data = build(CSST, update_interval=5)
    fit(model, data, epochs=2)
    assert "no multiplier" not in " ".join(model.deviations)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("min_recall", ()),
        ("min_ht_recall", ("head and tail",)),
        ("mean_recall_coverage", ("coverage constraints",)),
        ("hmean_recall_ht_coverage", ("coverage constraints", "head and tail", "linearised")),
    ],
)
def test_deviations_are_those_of_the_objective(objective, words):
    model, _ = build(CSST, objective=objective)
    model.due = frozenset([1])
    assert len(model.deviations) == 6 + len(words)
    for deviation, word in zip(model.deviations[6:], words, strict=True):
        assert word in deviation


def test_supervised_cost_sensitive_learning():
    model, data = build(CSST, update_interval=2, data={"mu": 0})
    start = model.multipliers.clone()
    fit(model, data, epochs=1)
    assert not torch.equal(model.multipliers, start)


def test_the_confidence_threshold_is_an_ablation():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.97, 0.02, 0.01]]).log()
    kept = {}
    for threshold in ("kl", "confidence"):
        model = of_logits(CSST, threshold=threshold)
        model.gain.copy_(COVERAGE)
        kept[threshold] = model.keep(logits, logits.argmax(1)).tolist()
    assert kept == {"kl": [True, False], "confidence": [False, True]}


def test_what_the_record_keeps_of_an_epoch():
    traces = Traces()
    model, data = build(CSST, update_interval=4, data={"oracle": True})
    trainer = fit(model, data, epochs=2, callbacks=[traces])
    for found in traces.seen:
        assert found.keys() == {
            *("lambda", "gain_diagonal", "held_out_recall", "held_out_coverage"),
            *("kept_share", "kept_accuracy"),
        }
        assert all(value.shape == (10,) for value in found.values())
    assert_close(traces.seen[-1]["lambda"], model.multipliers)
    last = traces.seen[-1]["held_out_recall"]
    zero = trainer.callback_metrics["train/held_out_zero_recall_classes"]
    assert zero == (last == 0).sum()


def test_multipliers_that_are_not_finite_stop_the_run():
    class Break(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.multipliers[0] = torch.nan

    model, data = build(CSST, update_interval=1)
    with pytest.raises(UserError, match="multiplier"):
        fit(model, data, epochs=2, callbacks=[Break()])

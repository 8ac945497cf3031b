"""CSST: losses against the paper's numbers, multipliers that follow the held-out set, resume."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from semi_digits import Traces, as_batch, build, of_logits
from support import fit, weights
from torch.testing import assert_close

from ltbench.data.protocols import ReleasedProtocol
from ltbench.errors import UserError
from ltbench.methods.csst import (
    CSST,
    PUBLISHED_BUDGET,
    hybrid_loss,
    target_divergence,
    update_steps,
    weighted_target,
)
from ltbench.objectives import OBJECTIVES, build_objective, decompose
from ltbench.records import read_record

LOGITS = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
PRIOR = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
LABELS = torch.arange(3)
# Gains of arXiv 2304.14738, section 4, after one update with step size 0.1: min recall from
# recalls (.9, .6, .2), and mean recall under coverage from coverages (.55, .3, .15).
MIN_RECALL = torch.tensor([0.322273, 0.332087, 0.345640], dtype=torch.float64).div(PRIOR).diag()
COVERAGE = (1 / (3 * PRIOR)).diag() + torch.tensor([0.31, 0.335, 0.35], dtype=torch.float64)


def close(actual, expected, tol=1e-6):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert_close(actual.double(), expected, atol=tol, rtol=0)


def same(rows):
    """The toy logits once a row."""
    return LOGITS.expand(rows, 3)


# --- the losses ---


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


# --- when multipliers move ---


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
    assert len(model.deviations) == 4 + len(words)
    for deviation, word in zip(model.deviations[4:], words, strict=True):
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


# --- a run ---

CONFIG = """
seed_everything: 3
trainer:
  max_epochs: 3
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
model:
  class_path: CSST
  init_args:
    objective: hmean_recall_coverage
    update_interval: 2
    backbone: tiny_net
    ema_decay: 0.9
data:
  class_path: SemiSupervisedDataModule
  init_args:
    source: digits
    protocol:
      class_path: ReleasedProtocol
      init_args: {n1: 40, rho_l: 10, m1: 60, rho_u: 10, val_per_class: 10}
    batch_size: 8
    mu: 2
    steps_per_epoch: 5
    oracle: true
    augment:
      - class_path: RandomCrop
        init_args: {padding: 1}
    strong_augment:
      - class_path: RandAugment
        init_args: {num_ops: 3, magnitude: null, space: fixmatch, cutout: 0.5}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "csst_tiny.yaml"
    path.write_text(CONFIG)
    return path


def test_a_resumed_run_equals_one_that_was_not_stopped(ltbench, config, tmp_path, monkeypatch):
    straight = tmp_path / "straight"
    straight.mkdir()
    done = ltbench("fit", "--config", config, cwd=straight)
    assert done.code == 0, done.err
    with monkeypatch.context() as patch:
        after = CSST.after_step

        def stop(self, step):
            if self.trainer.global_step == 8:
                raise KeyboardInterrupt
            after(self, step)

        patch.setattr(CSST, "after_step", stop)
        assert ltbench("fit", "--config", config).code == 130
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    assert "Going on from" in done.out

    (one,), (other,) = ((place / "runs").iterdir() for place in (straight, tmp_path))
    assert one.name == other.name
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (read_record(folder / "record.json") for folder in (one, other))
    assert first["metrics"] == second["metrics"]
    assert first["images_seen"] == second["images_seen"] == 15 * 24
    a, b = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (one, other))
    for key in ("state_dict", "current_model_state"):
        assert {"multipliers", "gain"} <= a[key].keys()
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
    with np.load(one / "traces.npz") as a, np.load(other / "traces.npz") as b:
        assert a["lambda"].shape == (3, 10)
        assert {"gain_diagonal", "kept_share", "kept_accuracy"} <= set(a.files)
        assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in a.files)
    assert first["method"] == "csst"
    assert first["data"]["oracle"] is True
    assert first["weights"] == "averaged"


# --- what is refused ---


def test_a_run_without_held_out_images():
    model, data = build(CSST, data={"protocol": ReleasedProtocol(40, 10, 60, 10, 0)})
    with pytest.raises(UserError, match="validation images"):
        fit(model, data, epochs=2)


def test_a_class_missing_from_the_held_out_set(ltbench, config, tmp_path, make_images):
    make_images(tmp_path / "shapes/train", {"ant": 20, "bee": 20, "cat": 20})
    make_images(tmp_path / "shapes/val", {"ant": 4, "cat": 4})
    settings = yaml.safe_load(CONFIG)
    settings["model"]["init_args"]["objective"] = "min_recall"
    settings["data"]["init_args"] |= {
        "source": "folder",
        "root": str(tmp_path / "shapes"),
        "protocol": {"class_path": "NaturalProtocol"},
    }
    config.write_text(yaml.safe_dump(settings))
    done = ltbench("fit", "--config", config)
    assert done.code == 2
    assert "held-out set has no image of 1 of 3 classes (class bee)" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "min_recal"}, "Did you mean 'min_recall'"),
        ({"objective": "mean_recall_coverage", "coverage_target": 1.2}, "coverage target"),
        ({"lambda_init": 0.5}, "sum to 1"),
        ({"objective": "mean_recall_coverage", "lambda_init": -1.0}, "at least 0"),
        ({"omega": 0.0}, "omega"),
        ({"budget": -1.0}, "budget"),
        ({"kl_tau": -0.1}, "kl_tau"),
        ({"kl_tau": math.nan}, "kl_tau"),
        ({"omega": math.nan}, "omega"),
        ({"omega": math.inf}, "omega"),
        ({"objective": "mean_recall_coverage", "lambda_init": math.nan}, "at least 0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        build(CSST, **options)


def test_multipliers_that_are_not_finite_stop_the_run():
    class Break(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.multipliers[0] = torch.nan

    model, data = build(CSST, update_interval=1)
    with pytest.raises(UserError, match="multiplier of the objective is not finite"):
        fit(model, data, epochs=2, callbacks=[Break()])

"""FixMatch: its loss against a slow one, hidden labels, averaged evaluation, statistics."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from scipy.special import log_softmax, softmax
from semi_digits import Traces, as_batch, build, of_logits, train
from support import fit, weights
from torch.testing import assert_close

from ltbench.data import LongTailDataModule
from ltbench.data.protocols import ReleasedProtocol
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.errors import UserError
from ltbench.methods.fixmatch import confident, pseudo_labels
from ltbench.optim.sam import LPFSGD, SAM
from ltbench.optim.step import Step

# --- the loss ---


@pytest.mark.paper
def test_the_loss_is_that_of_the_paper():
    draw = torch.Generator().manual_seed(0)
    labelled, weak, strong = (
        3 * torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (4, 12, 12)
    )
    labels = torch.tensor([0, 2, 1, 0])
    model = of_logits(lambda_u=0.7, p_cutoff=0.8)
    loss, statistics = model.loss_of(as_batch(labelled, labels, weak, strong))

    expected = -log_softmax(labelled.numpy(), 1)[range(4), labels].mean()
    kept = 0
    for one, other in zip(weak.numpy(), strong.numpy(), strict=True):
        if softmax(one).max() >= 0.8:
            kept += 1
            expected += 0.7 / 12 * -log_softmax(other)[one.argmax()]
    assert 0 < kept < 12
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert statistics["kept_share"] == pytest.approx(kept / 12)


def test_logit_adjustment_is_for_labelled_images_alone():
    weak = torch.tensor([[9.0, 0, 0], [0, 9, 0]])
    strong = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    batch = as_batch(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]), weak, strong)
    models = of_logits(), of_logits(loss="logit_adjusted_loss")
    for model in models:
        model.class_counts.copy_(torch.tensor([70.0, 20, 10]))
    one, other = (model.loss_of(batch)[1] for model in models)
    assert torch.equal(one["unlabelled_loss"], other["unlabelled_loss"])
    logits = torch.tensor([[1.0, 0, 0]]) + torch.tensor([0.7, 0.2, 0.1]).log()
    expected = F.cross_entropy(logits, torch.tensor([0]))
    assert other["labelled_loss"] == pytest.approx(expected.item())
    assert one["labelled_loss"] != other["labelled_loss"]


@pytest.mark.paper
def test_the_threshold_takes_in_its_boundary():
    logits = torch.tensor([[0.95, 0.05], [0.949, 0.051], [0.04, 0.96]]).log()
    assert confident(logits, 0.9499999).tolist() == [True, False, True]
    assert confident(torch.zeros(1, 2), 0.5).tolist() == [True]


@pytest.mark.paper
def test_soft_pseudo_labels_are_sharpened():
    logits = torch.tensor([[2.0, 1.0, 0.5]])
    assert pseudo_labels(logits).tolist() == [0]
    soft = pseudo_labels(logits, 0.4)
    assert soft.numpy() == pytest.approx(softmax(logits.numpy() / 0.4, 1))
    model = of_logits(temperature=0.4, p_cutoff=0.0)
    _, statistics = model.loss_of(as_batch(logits, torch.tensor([0]), logits, 2 * logits))
    expected = -(soft.numpy() * log_softmax(2 * logits.numpy(), 1)).sum()
    assert statistics["unlabelled_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_no_gradient_flows_into_the_weak_view(temperature):
    model = of_logits(temperature=temperature, p_cutoff=0.0)
    weak, strong = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    batch = as_batch(torch.randn(2, 3), torch.tensor([0, 1]), weak, strong)
    model.loss_of(batch)[0].backward()
    assert weak.grad.abs().sum() == 0
    assert strong.grad.abs().sum() > 0


def test_parts_of_a_batch_take_the_unlabelled_images_that_go_with_them():
    model = of_logits(p_cutoff=0.5)
    batch = as_batch(
        torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(12, 3), torch.randn(12, 3)
    )
    whole, statistics = model.loss_of(batch)
    step = Step(model, model.loss_of, batch, 4, 0, 1, None, backward=lambda loss: None)
    parts = [step.run(slice(start, start + 2)) for start in (0, 2)]
    assert torch.stack(parts).sum() == pytest.approx(whole.item(), rel=1e-5)
    for name, value in statistics.items():  # means of means, and a row per sample
        assert_close(step.statistics[name], value.detach())


def test_all_images_go_through_the_network_at_once():
    model, data = build()
    sizes = []
    model.net.register_forward_pre_hook(
        lambda net, args: sizes.append((net.training, len(args[0])))
    )
    fit(model, data, epochs=1)
    assert [size for training, size in sizes if training] == [8 + 2 * 24] * 6


# --- training ---


def test_digits_are_learnt():
    _, trainer = train(
        epochs=12,
        p_cutoff=0.8,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9),
        data={"protocol": ReleasedProtocol(40, 2, 60, 2, 10), "strong_augment": []},
    )
    assert trainer.callback_metrics["val/mean_recall"] > 0.4
    assert trainer.callback_metrics["train/kept_share"] > 0


@pytest.mark.parametrize("rule", [SAM(rho=0.05), LPFSGD(parts=2)], ids=["sam", "lpf"])
def test_gradient_rules(rule):
    model, _ = train(epochs=1, gradient_rule=rule)
    assert weights(model).isfinite().all()


def test_hidden_labels_change_nothing():
    """Other true labels of the unlabelled images, even opened: the same weights, bit for bit."""

    class Shuffled(SemiSupervisedDataModule):
        def _true_labels(self):
            return np.random.default_rng(0).permutation(super()._true_labels())

    models = []
    for kind, oracle in ((SemiSupervisedDataModule, False), (Shuffled, True)):
        model, data = build(data={"oracle": oracle})
        data.__class__ = kind
        fit(model, data, epochs=2)
        models.append(weights(model))
    assert torch.equal(*models)


def test_the_average_is_evaluated_with_the_statistics_of_the_last_step():
    averaged, seen = [], {}

    class Average(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            now = [p.detach().clone() for p in pl_module.net.parameters()]
            if trainer.global_step == 1:  # Lightning's average begins after the first step
                averaged.extend(now)
            for average, p in zip(averaged, now, strict=True):
                average.lerp_(p, 0.2)
            seen["buffers"] = copy.deepcopy(list(pl_module.net.buffers()))

        def on_validation_start(self, trainer, pl_module):
            seen["evaluated"] = copy.deepcopy(pl_module.evaluated)

    model, _ = train(epochs=1, callbacks=[Average()], ema_decay=0.8)
    for network in (seen["evaluated"], model.net):  # training leaves the averaged weights behind
        for average, p in zip(averaged, network.parameters(), strict=True):
            assert torch.allclose(average, p, atol=1e-6)
        for ours, theirs in zip(network.buffers(), seen["buffers"], strict=True):
            assert torch.equal(ours, theirs)


# --- statistics ---


def test_kept_pseudo_labels_are_counted_by_class():
    traces, counts = Traces(), np.zeros((3, 10))
    model, data = build(p_cutoff=0.3, data={"oracle": True})
    decide = model.keep

    def keep(logits, targets):
        model.decided = targets.numpy(), decide(logits, targets).numpy()
        return decide(logits, targets)

    class Count(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            targets, kept = pl_module.decided
            truth = data.oracle_labels()[batch["unlabelled"]["index"]].numpy()
            for row, chosen in enumerate((kept >= 0, kept, kept & (targets == truth))):
                counts[row] += np.bincount(targets[chosen], minlength=10)

    model.keep = keep
    trainer = fit(model, data, epochs=1, callbacks=[Count(), traces])
    (found,) = traces.seen
    with np.errstate(invalid="ignore"):
        assert np.array_equal(found["kept_share"], counts[1] / counts[0], equal_nan=True)
        assert np.array_equal(found["kept_accuracy"], counts[2] / counts[1], equal_nan=True)
    metrics = trainer.callback_metrics
    assert metrics["train/kept_share"] == pytest.approx(counts[1].sum() / counts[0].sum())
    assert metrics["train/kept_accuracy"] == pytest.approx(counts[2].sum() / counts[1].sum())


def test_accuracy_is_not_told_without_the_oracle():
    traces = Traces()
    _, trainer = train(epochs=1, callbacks=[traces])
    assert traces.seen[0].keys() == {"kept_share"}
    assert "train/kept_accuracy" not in trainer.callback_metrics


def test_without_unlabelled_images_there_is_nothing_to_tell():
    traces = Traces()
    train(epochs=1, callbacks=[traces], data={"mu": 0})
    assert traces.seen == [{}]


def test_deviations_are_those_of_the_run():
    model, _ = train(epochs=1)
    assert "Strong views" in model.deviations[0]
    assert "UDA" not in " ".join(model.deviations)
    model.temperature = 0.4
    assert "UDA's annealing" in model.deviations[-1]


# --- what is refused ---


def test_data_without_unlabelled_images():
    model, _ = build()
    with pytest.raises(UserError, match="SemiSupervisedDataModule"):
        fit(model, LongTailDataModule("digits", imbalance_factor=5))


@pytest.mark.parametrize(
    "options",
    [
        *({"lambda_u": value} for value in (-1, math.nan, math.inf)),
        *({"p_cutoff": value} for value in (1.1, math.nan)),
        *({"temperature": value} for value in (0, math.nan)),
        {"loss": "cross"},
    ],
)
def test_arguments_out_of_range(options):
    with pytest.raises(UserError):
        build(**options)

"""DeiT-LT: what each head learns, against the equations of the paper."""

import copy

import pytest
import torch
from deit_digits import Steps, build, by_hand, fit, train

from ltbench.methods.erm import Reweighting


@pytest.mark.paper
@pytest.mark.parametrize(
    ("options", "form", "soft"),
    [
        ({}, "normalised", False),
        ({"reweighting": Reweighting()}, "normalised", False),
        ({"reweighting": Reweighting(), "drw_form": "paper"}, "paper", False),
        ({"reweighting": Reweighting(), "mix_in_drw": True}, "normalised", False),
        ({"distillation": "soft", "teacher_scale": 3.0}, "normalised", True),
        ({"distillation": "soft", "reweighting": Reweighting()}, "normalised", True),
        ({"alpha": 0.2}, "normalised", False),
    ],
    ids=["plain", "drw", "drw-paper", "drw-mixed", "soft", "soft-drw", "alpha"],
)
def test_the_loss_is_that_of_the_paper(teacher, options, form, soft):
    model, data = build(teacher=teacher, **options)
    found = []

    class Look(Steps):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            prepared = pl_module.prepare_step({k: v.clone() for k, v in batch.items()})
            pl_module.net.eval()  # without drop-path
            loss = pl_module.loss_of(prepared)[0].item()
            pl_module.net.train()
            found.append((loss, by_hand(pl_module, prepared, pl_module.weight, form, soft)))

        def on_fit_start(self, trainer, pl_module):
            """Take no notice of what steps prepare."""

    fit(model, data, callbacks=[Look()])
    assert len(found) > 4
    for loss, (cls, dist) in found:
        assert loss == pytest.approx((1 - model.alpha) * cls + model.alpha * dist, rel=1e-4)


@pytest.mark.parametrize(("alpha", "trained"), [(0.0, "head."), (1.0, "head_dist.")])
def test_each_head_learns_from_its_own_term_alone(teacher, alpha, trained):
    model, data = build(teacher=teacher, alpha=alpha)
    before = copy.deepcopy(model.net.state_dict())
    fit(model, data, limit_train_batches=1)
    moved = {
        name
        for name, value in model.net.state_dict().items()
        if name.startswith("head") and not torch.equal(value, before[name])
    }
    # Weight decay moves weights alone, so biases tell.
    assert {name for name in moved if name.endswith("bias")} == {f"{trained}bias"}


def test_cls_may_be_trained_with_a_loss_of_long_tails(teacher):
    losses = {}
    for name in ("cross_entropy_loss", "balanced_softmax_loss"):
        _, trainer = train(teacher=teacher, loss=name, trainer={"limit_train_batches": 1})
        losses[name] = trainer.callback_metrics
    ours, theirs = losses.values()
    assert ours["train/dist_loss"] == theirs["train/dist_loss"]
    assert ours["train/cls_loss"] != theirs["train/cls_loss"]


def test_without_a_teacher_both_heads_learn_the_labels():
    steps = Steps()
    model, trainer = train(12, [steps], reweighting=Reweighting(0.75), mixup=0, cutmix=0)
    for epoch, labels, prepared, weight in steps.seen:
        assert torch.equal(prepared["taught"], prepared["target"])
        assert (weight is not None) == (epoch >= 9)
        assert epoch < 9 or torch.equal(prepared["target"], labels)
    metrics = trainer.callback_metrics
    assert max(metrics["train/cls_loss"], metrics["train/dist_loss"]) < 1.9  # ln 10 = 2.3
    assert model.teacher is None
    assert model.lineage == []

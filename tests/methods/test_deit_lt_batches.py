"""DeiT-LT: batches in parts, and under SAM."""

import copy

import numpy as np
import pytest
import torch
from deit_digits import STUDENT, Steps, build, by_hand, fit, train

from ltbench.errors import UserError
from ltbench.methods.erm import Reweighting
from ltbench.optim.accumulation import MicroBatches, parts
from ltbench.optim.sam import SAM
from ltbench.optim.step import Step


def test_parts_cut_up_a_batch():
    assert parts(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert parts(10, None) == [slice(0, 10)]
    assert parts(4, 4) == [slice(0, 4)]


def test_the_gradient_of_parts_is_that_of_the_batch():
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(3, 1), torch.randn(10, 3)
    for rule in (MicroBatches(4), MicroBatches(64)):
        step = Step(layer, lambda x: layer(x).square().mean(), inputs, 10, 0, 1, torch.Generator())
        loss = rule.backward(step)
        expected = layer(inputs).square().mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(layer.weight.grad, torch.autograd.grad(expected, layer.weight)[0])


def test_a_micro_batch_is_mixed_and_averaged_by_itself(teacher):
    """The published code's accumulation: a lambda and a weighted mean for each pass."""
    options = {"teacher": teacher, "reweighting": Reweighting(), "mix_in_drw": True}
    options |= {"backbone_args": {**STUDENT["backbone_args"], "drop_path_rate": 0.0}}
    steps = Steps()
    model, data = build(micro_batch=8, **options)
    start = copy.deepcopy(model)
    trainer = fit(model, data, callbacks=[steps], limit_train_batches=1)
    _, _, prepared, weight = steps.seen[0]
    found = []
    for part in parts(32, 8):
        piece = {name: tensor[part] for name, tensor in prepared.items()}
        found.append(by_hand(start, piece, weight))
        # Every image of a part shares its lambda with the partner from the part's other end.
        torch.testing.assert_close(
            piece["target"].sum(0), (piece["target"] + piece["target"].flip(0)).sum(0) / 2
        )
    cls, dist = np.mean(found, axis=0)
    loss = trainer.callback_metrics["train/loss"]
    assert loss.item() == pytest.approx((cls + dist) / 2, rel=1e-4)
    assert trainer.callback_metrics["train/cls_loss"].item() == pytest.approx(cls, rel=1e-4)


@pytest.mark.parametrize(
    ("batch", "micro", "near"), [(30, 8, "24 or 32"), (6, 8, "8"), (100, 64, "64 or 128")]
)
def test_a_batch_that_does_not_divide_is_refused_with_numbers_that_would(batch, micro, near):
    model, data = build(micro_batch=micro, data={"batch_size": batch})
    with pytest.raises(UserError, match=near):
        fit(model, data)


def test_micro_batches_exclude_other_rules():
    with pytest.raises(UserError, match="micro_batch"):
        build(micro_batch=8, gradient_rule=SAM())


def test_sam_sees_the_same_images_and_answers_twice(teacher):
    _, trainer = train(2, teacher=teacher, gradient_rule=SAM(rho=0.05))
    assert trainer.callback_metrics["train/perturbed_loss"].isfinite()
    assert trainer.global_step == 2 * trainer.num_training_batches

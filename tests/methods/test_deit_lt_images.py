"""DeiT-LT: what student and teacher see of an image, and when it is mixed."""

import numpy as np
import pytest
import torch
from deit_digits import STUDENT, Steps, build, fit, train
from lightning.pytorch.callbacks import Callback
from support import weights

from ltbench.data.transforms.basic import RandomCrop
from ltbench.methods.deit_lt.distillation import drw_weights
from ltbench.methods.erm import Reweighting


def test_the_teacher_sees_the_students_own_mixed_images(teacher):
    model, data = build(teacher=teacher, data={"augment": [RandomCrop(1)]})
    images = {"teacher": [], "student": []}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            for role, module in (
                ("teacher", pl_module.teacher.network),
                ("student", pl_module.net.patch_embed),
            ):
                module.register_forward_pre_hook(
                    lambda module, args, role=role: images[role].append(args[0].clone())
                )

    steps = Steps()
    fit(model, data, callbacks=[Look(), steps])
    assert len(images["teacher"]) == len(images["student"]) > 4
    for seen, learnt in zip(images["teacher"], images["student"], strict=True):
        assert torch.equal(seen, learnt)
    for (_, _, prepared, _), learnt in zip(steps.seen, images["student"], strict=True):
        assert torch.equal(prepared["image"], learnt)
        assert torch.equal(prepared["taught"], model.teacher.network(learnt).argmax(1))
        assert prepared["target"].shape == (len(learnt), 10)
        assert torch.allclose(prepared["target"].sum(1), torch.ones(len(learnt)))
    shares = torch.cat([prepared["target"] for _, _, prepared, _ in steps.seen])
    assert ((shares > 0.02) & (shares < 0.9)).any()


def test_both_are_brought_to_their_own_size(teacher):
    options = {**STUDENT["backbone_args"], "img_size": 56}
    model, data = build(teacher=teacher, teacher_size=8, backbone_args=options, mixup=0, cutmix=0)
    steps = Steps()
    fit(model, data, callbacks=[steps], limit_train_batches=1)
    _, _, prepared, _ = steps.seen[0]
    assert prepared["image"].shape[1:] == (1, 56, 56)
    view = model.teacher.view(prepared["image"])
    assert view.shape[1:] == (1, 8, 8)
    assert torch.equal(view, prepared["image"][:, :, 3::7, 3::7])  # no antialiasing: each 7th pixel
    assert model.outputs(torch.randn(2, 1, 8, 8))[""].shape == (2, 10)


def test_the_teacher_is_given_the_statistics_that_it_was_trained_with(teacher):
    model, data = build(teacher=teacher)
    data.source.mean, data.source.std = (0.2,), (0.5,)
    fit(model, data, limit_train_batches=1)
    pixels = torch.rand(3, 1, 8, 8)
    view = model.teacher.view((pixels - 0.2) / 0.5)
    torch.testing.assert_close(view, (pixels - 0.305) / 0.376)


@pytest.mark.parametrize("mix_in_drw", [False, True])
def test_drw_starts_at_its_epoch_and_ends_mixing_unless_told_otherwise(teacher, mix_in_drw):
    steps, rule = Steps(), Reweighting(0.5, beta=0.99)
    options = {"teacher": teacher, "reweighting": rule, "mix_in_drw": mix_in_drw}
    _, trainer = train(4, [steps], **options)
    expected = drw_weights(torch.from_numpy(trainer.datamodule.class_counts), 0.99)
    for epoch, labels, prepared, weight in steps.seen:
        assert (weight is None) == (epoch < 2)
        assert weight is None or torch.allclose(weight, expected)
        if epoch < 2 or mix_in_drw:
            assert prepared["target"].is_floating_point()
        else:
            assert torch.equal(prepared["target"], labels)
    assert {epoch for epoch, *_ in steps.seen} == {0, 1, 2, 3}


def test_repeatable_whatever_else_draws(teacher):
    options = {"teacher": teacher, "data": {"augment": [RandomCrop(1)]}}
    one, _ = train(2, **options)

    class Draw(Callback):
        def on_train_batch_end(self, *args):
            torch.rand(3)
            np.random.rand(3)

    same, _ = train(2, [Draw()], **options)
    assert torch.equal(weights(one), weights(same))
    other, _ = train(2, seed=1, **options)
    assert not torch.equal(weights(one), weights(other))

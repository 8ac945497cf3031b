"""ERM: it learns, in every combination, repeatably, and in lower precision."""

import numpy as np
import pytest
import torch
from erm_digits import Watch, sgd, train
from lightning.pytorch.callbacks import Callback
from support import weights

from ltbench.data.transforms.basic import RandomCrop
from ltbench.methods.erm import Reweighting
from ltbench.optim.sam import SAM


@pytest.mark.parametrize("rule", [None, SAM(rho=0.1)], ids=["plain", "sam"])
def test_digits_are_learnt(rule):
    losses = Watch(lambda trainer, model: trainer.callback_metrics["train/loss"].item())
    model, trainer = train(epochs=12, callbacks=[losses], gradient_rule=rule)
    assert np.mean(losses.seen[-6:]) < 0.3 * np.mean(losses.seen[:6])
    (result,) = trainer.test(model, trainer.datamodule, verbose=False)
    assert result["test/accuracy"] > 0.75
    assert result["test/min_recall"] > 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "vs_loss", "loss_args": {"gamma": 0.15, "tau": 1.25}},
        {"loss": "ldam_loss", "head": "cosine", "reweighting": Reweighting(0.5)},
        {"loss": "focal_loss", "reweighting": Reweighting()},
        {"mixup": 1.0, "loss": "logit_adjusted_loss"},
        {"trainer": {"precision": "bf16-mixed"}, "gradient_rule": SAM()},
    ],
    ids=["vs", "ldam", "focal", "mixup", "bf16"],
)
def test_every_combination_trains(options):
    losses = Watch(lambda trainer, model: trainer.callback_metrics["train/loss"].item())
    model, _ = train(epochs=6, callbacks=[losses], **options)
    assert np.mean(losses.seen[-6:]) < 0.8 * np.mean(losses.seen[:6])
    assert weights(model).dtype == torch.float32
    assert weights(model).isfinite().all()


class Contiguous(Callback):
    """Undo the memory layout of images and weights that is the default."""

    def on_fit_start(self, trainer, pl_module):
        pl_module.net.to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize(
    ("switch", "rounding"),
    [
        ({"callbacks": [Contiguous()]}, 1e-4),
        ({"trainer": {"precision": "bf16-mixed"}}, 2e-2),
        pytest.param({"compile": True}, 1e-4, marks=pytest.mark.slow),  # a minute of compiling
    ],
    ids=["channels-last", "bf16", "compile"],
)
def test_what_is_faster_trains_the_same_within_rounding(switch, rounding):
    curves = []
    for options in ({}, switch):
        losses = Watch(lambda trainer, model: trainer.callback_metrics["train/loss"].item())
        callbacks = [losses, *options.get("callbacks", [])]
        train(**{**options, "callbacks": callbacks, "optimizer": sgd(lr=0.01)})
        curves.append(losses.seen)
    np.testing.assert_allclose(*curves, rtol=rounding)
    assert "callbacks" in switch or curves[0] != curves[1]  # layouts may even round alike


def test_the_seed_is_all_that_matters():
    options = {
        "mixup": 1.0,
        "backbone_args": {"drop_rate": 0.5},
        "data": {"augment": [RandomCrop(1)]},
    }
    one, _ = train(epochs=2, **options)

    class Draw(Callback):
        def on_train_batch_end(self, *args):
            torch.rand(3)
            np.random.rand(3)

    same, _ = train(epochs=2, callbacks=[Draw()], **options)
    assert torch.equal(weights(one), weights(same))
    other, _ = train(epochs=2, seed=1, **options)
    assert not torch.equal(weights(one), weights(other))

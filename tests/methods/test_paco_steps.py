"""PaCo: what a step contrasts, averages and keeps, and what it needs."""

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from paco_digits import slow_loss
from support import fit
from torch import nn

from ltbench.data import LongTailDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.errors import UserError
from ltbench.methods.paco import PaCo
from ltbench.models import penultimate
from ltbench.optim.sam import LPFSGD, SAM
from ltbench.optim.schedules import Constant


def build(seed=0, data=None, **options):
    """A data module with two views of the digits and a small model drawn from ``seed``."""
    L.seed_everything(seed, verbose=False)
    defaults = {"imbalance_factor": 10, "largest": 40, "val_fraction": 0.2, "batch_size": 16}
    views = {"augment": [RandomCrop(1)], "views": {"key": [RandomCrop(2)]}}
    module = LongTailDataModule("digits", **{**defaults, **views, **(data or {})})
    small = {"backbone": "tiny_net", "queue": 24, "dim": 8, "lr_schedule": Constant()}
    return PaCo(10, 1, **{**small, **options}), module


class Steps(Callback):
    """Call ``look(model, batch)`` before and after every step; keep what it returns."""

    def __init__(self, look):
        self.look, self.before, self.after = look, [], []

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.before.append(self.look(model, batch))

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.after.append(self.look(model, batch))


def state_and_batch(model, batch):
    return {name: value.clone() for name, value in model.state_dict().items()}, batch


def slow_step(model, batch, prior):
    """The loss of a batch, anchor by anchor."""

    def seen(net, images):
        return net.forward_head(net.forward_features(images), pre_logits=True)

    labels = batch["label"].numpy()
    with torch.no_grad():
        found = seen(model.net, batch["image"])
        logits = model.net.fc(found).numpy() + prior
        queries = F.normalize(model.projection(found)).numpy()
        keys = F.normalize(model.key_projection(seen(model.key_net, batch["key"]))).numpy()
    filled = model.queue.labels >= 0
    others = np.concatenate([queries, keys, model.queue.keys[filled].numpy()])
    theirs = np.concatenate([labels, labels, model.queue.labels[filled].numpy()])
    losses = []
    for i, label in enumerate(labels):
        rest = np.arange(len(others)) != i
        similarities = others[rest] @ queries[i] / model.temperature
        positive = theirs[rest] == label
        arguments = logits[i : i + 1], similarities[None], [label], positive[None]
        losses.append(slow_loss(*arguments, model.alpha, model.beta))
    return np.mean(losses)


def test_every_step_contrasts_what_it_should():
    """From the empty queue, by the half full one, to a queue that has gone round."""
    model, data = build(alpha=0.1, temperature=0.2)
    losses, original = [], model.loss_of

    def kept(*arguments):
        loss = original(*arguments)
        losses.append(loss.detach())
        return loss

    model.loss_of = kept
    steps = Steps(state_and_batch)
    fit(model, data, callbacks=[steps])
    prior = np.log(data.class_counts / data.class_counts.sum())
    twin, _ = build(alpha=0.1, temperature=0.2)
    twin.train()
    for (state, batch), loss in zip(steps.before, losses, strict=True):
        twin.load_state_dict(state)
        assert float(loss) == pytest.approx(slow_step(twin, batch, prior), rel=1e-5)
    assert (state["queue.labels"] >= 0).all()


@pytest.mark.parametrize("rule", [None, SAM(rho=0.1), LPFSGD(sigma=1e-3, parts=2)])
def test_the_average_follows_and_keys_are_kept_once_a_step(rule):
    model, data = build(momentum=0.9, gradient_rule=rule)
    steps = Steps(state_and_batch)
    fit(model, data, callbacks=[steps])
    averaged = {f"key_{name}": name for name, _ in model.named_parameters() if "key_" not in name}
    seen = []
    for (before, batch), (after, _) in zip(steps.before, steps.after, strict=True):
        for average, name in averaged.items():
            expected = 0.9 * before[average] + 0.1 * after[name]
            assert torch.allclose(after[average], expected, atol=1e-6), name
        seen += batch["label"].tolist()
        held = after["queue.labels"]
        assert sorted(held[held >= 0].tolist()) == sorted(seen[-24:])
        assert int(after["queue.place"]) == len(seen) % 24
    assert int(model.key_net.bn.num_batches_tracked) == len(steps.before)
    assert torch.allclose(model.queue.keys.norm(dim=1), torch.ones(24))
    assert all(p.isfinite().all() for p in model.parameters())


def test_only_the_network_and_its_projection_are_trained():
    model, data = build()
    trainer = fit(model, data)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    expected = [*model.net.parameters(), *model.projection.parameters()]
    assert trained == {id(p) for p in expected}
    assert all(p.grad is None for p in model.key_net.parameters())


def test_prediction_has_no_prior():
    model, data = build()
    fit(model, data)
    images = torch.randn(5, 1, 8, 8)
    model.eval()
    assert torch.equal(model(images), model.net(images))


def test_both_views_are_drawn_apart():
    model, data = build()
    steps = Steps(lambda model, batch: batch)
    fit(model, data, callbacks=[steps])
    for batch in steps.before:
        assert batch["image"].shape == batch["key"].shape
        assert not torch.equal(batch["image"], batch["key"])


@pytest.mark.paper
def test_both_encoders_project_with_batch_norm_and_centres_start_as_torchs_linear():
    model, _ = build(backbone="resnet32_cifar", dim=32)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    for projection in (model.projection, model.key_projection):
        assert [type(layer) for layer in projection] == kinds
        assert [layer.out_features for layer in projection[::3]] == [64, 32]
    centres = [p.detach().flatten() for p in penultimate.linear_heads(model.net)[0].parameters()]
    bound = 1 / 8  # one over the root of 64 features
    assert 0.97 * bound < centres[0].abs().max() <= bound  # uniform, not normal
    assert centres[1].any()
    assert centres[1].abs().max() <= bound


def test_batch_norm_of_the_keys_follows_the_keys():
    look = Steps(
        lambda model, batch: [
            projection[1].running_mean.clone()
            for projection in (model.projection, model.key_projection)
        ]
    )
    model, data = build()
    fit(model, data, epochs=1, callbacks=[look])
    for query, key in look.after:
        assert not torch.equal(query, key)
    assert not torch.equal(look.after[0][1], look.after[-1][1])


def test_a_last_batch_of_one_image_is_refused_before_it_is_met():
    _, data = build()
    data.setup()
    options = {"batch_size": len(data.splits["train"].labels) - 1}
    model, data = build(data=options)
    with pytest.raises(UserError, match="drop_last"):
        fit(model, data)
    model, data = build(data={**options, "drop_last": True})
    assert fit(model, data).global_step == 1
    model, data = build(data={"batch_size": 10_000, "drop_last": True})
    with pytest.raises(UserError, match="drop_last"):
        fit(model, data)


def test_a_second_view_is_needed():
    model, data = build(data={"views": None})
    with pytest.raises(UserError, match=r"data\.views: \{key"):
        fit(model, data)


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1}, {"temperature": 0}, {"queue": 0}, {"momentum": 1.0}, {"beta": 0.0}, {"dim": 0}],
)
def test_an_argument_out_of_range(options):
    with pytest.raises(UserError, match="PaCo"):
        PaCo(10, 1, backbone="tiny_net", **options)


def test_a_cosine_classifier_is_refused():
    with pytest.raises(UserError, match="head: linear"):
        PaCo(10, 1, backbone="tiny_net", head="cosine")

"""ERM: steps, schedules, class weights, clipping, float16."""

import copy

import pytest
import torch
import torch.nn.functional as F
from erm_digits import Watch, build, sgd, train, watch_loss
from lightning.pytorch.plugins import MixedPrecision
from support import fit, weights

from ltbench.errors import UserError
from ltbench.losses import class_balanced_weights
from ltbench.methods.erm import Reweighting
from ltbench.optim.sam import SAM
from ltbench.optim.schedules import Cosine, MultiStep


@pytest.mark.parametrize("rule", [None, SAM()], ids=["plain", "sam"])
def test_global_step_counts_batches(rule):
    _, trainer = train(epochs=2, gradient_rule=rule)
    assert (
        trainer.global_step
        == 2 * trainer.num_training_batches
        == trainer.estimated_stepping_batches
    )


def test_max_steps_counts_batches_too():
    model, data = build(gradient_rule=SAM())
    assert fit(model, data, epochs=3, max_steps=7).global_step == 7


@pytest.mark.parametrize("schedule", [None, Cosine(warmup=2)], ids=["default", "cosine"])
def test_learning_rate_follows_the_schedule(schedule):
    rates = Watch(
        lambda trainer, model: (trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"])
    )
    train(epochs=20, callbacks=[rates], lr_schedule=schedule, trainer={"limit_train_batches": 1})
    expected = schedule or MultiStep()
    for epoch, rate in rates.seen:
        assert rate == pytest.approx(0.1 * expected.factor(epoch, 20), rel=1e-12), epoch
    assert len({rate for _, rate in rates.seen}) >= 3


def test_schedules_need_the_number_of_epochs():
    model, data = build()
    with pytest.raises(UserError, match="max_epochs"):
        fit(model, data, epochs=-1, max_steps=3)


@pytest.mark.parametrize(("start", "first"), [(0, 0), (0.5, 2), (3, 3), (1.0, 4)])
def test_class_weights_start_at_their_epoch(start, first):
    model, data = build(reweighting=Reweighting(start, beta=0.99))
    seen = []
    watch_loss(
        model, lambda logits, targets, counts, weight: seen.append((model.current_epoch, weight))
    )
    fit(model, data, epochs=4)
    expected = class_balanced_weights(torch.from_numpy(data.class_counts), 0.99)
    for epoch, weight in seen:
        assert (weight is None) == (epoch < first)
        assert weight is None or torch.allclose(weight, expected.to(weight.dtype))
    assert {epoch for epoch, _ in seen} == {0, 1, 2, 3}


def test_the_loss_sees_the_counts_of_the_training_set():
    model, data = build()
    seen = []
    watch_loss(model, lambda logits, targets, counts, weight: seen.append(counts))
    fit(model, data)
    assert all(counts.tolist() == data.class_counts.tolist() for counts in seen)
    assert data.class_counts.tolist()[0] == 48  # of 60, a fifth to validation


def test_clipping_acts_on_the_descent_gradient_alone():
    options = {
        "gradient_rule": SAM(rho=0.2),
        "optimizer": sgd(lr=1.0, momentum=0.0),
        "trainer": {"max_steps": 1},
    }
    norms = Watch(lambda trainer, model: float(trainer.callback_metrics["train/gradient_norm"]))
    perturbed = Watch(
        lambda trainer, model: float(trainer.callback_metrics["train/perturbed_loss"])
    )
    start = weights(build()[0])
    free = weights(train(callbacks=[norms, perturbed], **options)[0]) - start
    clipped = weights(train(callbacks=[norms, perturbed], clip_norm=0.1, **options)[0]) - start
    loose = weights(train(callbacks=[norms], clip_norm=100.0, **options)[0]) - start
    assert norms.seen[0] == norms.seen[1] == norms.seen[2] > 0.1  # the ascent was not clipped
    assert perturbed.seen[0] == perturbed.seen[1]
    assert clipped.norm().item() == pytest.approx(0.1, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-5)
    assert torch.equal(loose, free)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("rule", [None, SAM(rho=0.1)], ids=["plain", "sam"])
def test_float16_with_its_loss_scale(rule, clip):
    """On a CPU, through the same scaler that a GPU uses."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    moves = Watch(lambda trainer, model: weights(model))
    model, data = build(gradient_rule=rule, clip_norm=clip, optimizer=sgd(1.0, momentum=0.0))
    start = weights(model)
    fit(model, data, callbacks=[moves], plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    reference, _ = train(
        gradient_rule=rule,
        clip_norm=clip,
        optimizer=sgd(1.0, momentum=0.0),
        trainer={"max_steps": 1},
    )
    first, exact = moves.seen[0] - start, weights(reference) - start
    assert torch.nn.functional.cosine_similarity(first, exact, dim=0) > 0.999
    assert first.norm().item() == pytest.approx(exact.norm().item(), rel=0.01)
    assert clip is None or first.norm().item() == pytest.approx(0.1, rel=0.01)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_an_overflow_in_float16_skips_the_step():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    model, data = build(gradient_rule=SAM(rho=0.1))
    start, rates = weights(model), Watch(lambda trainer, model: scaler.get_scale())
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    fit(model, data, callbacks=[rates], plugins=plugins, max_steps=3, limit_val_batches=0)
    assert torch.equal(weights(model), start)
    assert rates.seen == [2.0**59, 2.0**58, 2.0**57]


def test_a_step_without_options_is_plain_sgd():
    """Against a loop without Lightning, on the same batches."""
    model, data = build(data={"augment": []})
    reference = copy.deepcopy(model.net)
    fit(model, data, epochs=2, limit_val_batches=0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    loader = data.train_dataloader()
    reference.train()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            F.cross_entropy(reference(data.normalise(batch["image"])), batch["label"]).backward()
            optimizer.step()
    for ours, theirs in zip(model.net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    for ours, theirs in zip(model.net.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)

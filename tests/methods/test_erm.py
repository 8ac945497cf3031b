"""ERM through Lightning's trainer: each option does what it says, and a resumed run is the same."""

import copy

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from support import fit, weights
from torch.utils.data import DataLoader, TensorDataset

from ltbench import records
from ltbench.data import LongTailDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.errors import UserError
from ltbench.losses import class_balanced_weights
from ltbench.methods.erm import ERM, Reweighting
from ltbench.optim.sam import SAM
from ltbench.optim.schedules import Constant, Cosine, MultiStep

DIGITS = {"imbalance_factor": 10, "largest": 60, "val_fraction": 0.2, "batch_size": 32}


def sgd(lr=0.1, momentum=0.9):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def build(seed=0, data=None, **options):
    """A data module and a small model with weights drawn from ``seed``."""
    L.seed_everything(seed, verbose=False)
    module = LongTailDataModule("digits", **{**DIGITS, **(data or {})})
    defaults = {"backbone": "tiny_net", "optimizer": sgd(), "lr_schedule": Constant()}
    return ERM(10, 1, **{**defaults, **options}), module


def train(epochs=1, callbacks=(), trainer=None, **options):
    model, data = build(**options)
    return model, fit(model, data, epochs, callbacks, **(trainer or {}))


class Watch(Callback):
    """Call ``look(trainer, model)`` after every step; keep what it returns."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append(self.look(trainer, pl_module))


def watch_loss(model, look):
    """Call ``look(logits, targets, counts, weight)`` before each use of the loss."""
    original = model.loss

    def loss(logits, targets, counts, weight=None):
        look(logits, targets, counts, weight)
        return original(logits, targets, counts, weight=weight)

    model.loss = loss


# --- it learns ---


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


# --- steps, schedules and weights ---


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


# --- mixing and averaging ---


@pytest.mark.parametrize(
    "options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_mixing_gives_soft_targets_that_match_the_images(options):
    model, data = build(**options, gradient_rule=SAM())
    seen = []
    watch_loss(model, lambda logits, targets, counts, weight: seen.append(targets))
    fit(model, data, epochs=2)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first, second)  # both of SAM's passes see the same mixture
        assert first.shape[1] == 10
        assert torch.allclose(first.sum(1), torch.ones(len(first)))
    shares = torch.cat([targets.max(1).values for targets in seen])
    assert (shares < 0.999).any()
    assert len({round(float(targets.max(1).values.min()), 4) for targets in seen[::2]}) > 3


def test_without_mixing_targets_are_labels():
    model, data = build()
    seen = []
    watch_loss(model, lambda logits, targets, counts, weight: seen.append(targets.dtype))
    fit(model, data)
    assert set(seen) == {torch.int64}


def test_the_average_is_that_of_the_weights_after_each_step():
    raw = Watch(lambda trainer, model: weights(model))
    model, data = build(ema_decay=0.9)
    fit(model, data, epochs=2, callbacks=[raw])
    average = raw.seen[0]
    for now in raw.seen[1:]:
        average = 0.9 * average + 0.1 * now
    assert torch.allclose(weights(model), average, atol=1e-5)
    assert not torch.allclose(weights(model), raw.seen[-1], atol=1e-3)


def evaluate(state, data, split):
    """Logits of a state dict on a split, by hand."""
    model = ERM(10, 1, backbone="tiny_net")
    model.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
    model.eval()
    dataset = data.dataset(split)
    with torch.no_grad():
        logits = model(data.normalise(dataset.images))
    return logits.argmax(1).numpy(), dataset.labels.numpy()


def test_with_averaging_the_average_is_saved_and_tested(ltbench, tiny, tmp_path):
    words = ["--config", tiny, "--model.init_args.ema_decay", 0.95]
    done = ltbench("fit", *words)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert record["weights"] == "averaged"
    _, data = build()
    data.setup()
    for selection in ("last", "best"):
        saved = torch.load(folder / f"checkpoints/{selection}.ckpt", weights_only=True)
        predicted, labels = evaluate(saved["state_dict"], data, "test")
        with np.load(folder / f"predictions_{selection}.npz") as stored:
            assert (stored["prediction"] == predicted).mean() > 0.99
            raw, _ = evaluate(saved["current_model_state"], data, "test")
            assert (stored["prediction"] == raw).mean() < 0.99
        metrics = record["metrics"][selection]
        assert metrics["test"]["accuracy"] == pytest.approx((predicted == labels).mean(), abs=0.003)
        predicted, labels = evaluate(saved["state_dict"], data, "val")
        expected = balanced_accuracy_score(labels, predicted)
        assert metrics["val"]["mean_recall"] == pytest.approx(expected, abs=0.02)
    again = ltbench("test", *words, "--ckpt_path", folder / "checkpoints/last.ckpt")
    assert f" {100 * record['metrics']['last']['test']['accuracy']:.1f} " in again.out


# --- evaluation ---


def test_validation_metrics_are_those_of_scikit_learn(digits_run):
    _, data = build()
    data.setup()
    saved = torch.load(digits_run.last, weights_only=True)["state_dict"]
    predicted, labels = evaluate(saved, data, "val")
    row = pd.read_csv(digits_run.folder / "metrics.csv").iloc[-1]
    assert row["val/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert row["val/mean_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    recalls = recall_score(labels, predicted, average=None, labels=range(10))
    assert row["val/min_recall"] == pytest.approx(recalls.min())
    assert row["val/dead_classes"] == (recalls == 0).sum()


def test_the_test_set_can_be_watched_but_chooses_nothing():
    model, data = build(data={"watch_test": True})
    trainer = fit(model, data, epochs=2)
    watched = trainer.callback_metrics["test_watched/accuracy"]
    assert "val/accuracy" in trainer.callback_metrics
    (result,) = trainer.test(model, data, verbose=False)
    assert result["test/accuracy"] == watched.item()


def test_the_data_must_be_ours_and_of_the_same_classes():
    model, data = build()
    images = TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="LongTailDataModule"):
        trainer.test(model, DataLoader(images), verbose=False)
    with pytest.raises(UserError, match="3 classes, the data 10"):
        fit(ERM(3, 1, backbone="tiny_net"), data)


def test_ldam_needs_cosines():
    with pytest.raises(UserError, match="head: cosine"):
        train(loss="ldam_loss")


# --- runs that stop ---

RESUMED = """
model:
  init_args:
    backbone_args: {drop_rate: 0.3}
    gradient_rule: {class_path: SAM, init_args: {rho: 0.1}}
    reweighting: {start: 0.5}
    lr_schedule: {class_path: Cosine, init_args: {warmup: 1}}
    mixup: 0.4
    cutmix: 1.0
    ema_decay: 0.9
"""


def stop_at(patch, step, exception):
    original = ERM.on_train_batch_start

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise exception
        original(self, batch, batch_idx)

    patch.setattr(ERM, "on_train_batch_start", hook)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run of ``RESUMED`` that nothing interrupts: its folder and the words that name it."""
    return tmp_path_factory.mktemp("straight")


@pytest.mark.parametrize("step", [3, 14, 17])
def test_a_resumed_run_equals_one_that_was_not_stopped(
    step, ltbench, tiny, straight, tmp_path, monkeypatch
):
    """Bit for bit, whether it is stopped in epoch 1 (nothing saved yet) or in the third."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(RESUMED)
    words = ["fit", "--config", tiny, "--config", overlay]
    if not (straight / "runs").exists():
        done = ltbench(*words, cwd=straight)
        assert done.code == 0, done.err
    with monkeypatch.context() as patch:
        stop_at(patch, step, KeyboardInterrupt())
        assert ltbench(*words).code == 130
    done = ltbench(*words)
    assert done.code == 0, done.err
    assert ("Going on from" in done.out) == (step > 6)

    (one,), (other,) = ((place / "runs").iterdir() for place in (straight, tmp_path))
    assert one.name == other.name
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (records.read_record(folder / "record.json") for folder in (one, other))
    assert first["metrics"] == second["metrics"]
    for key in ("epochs", "steps", "images_seen", "data", "config", "job_id"):
        assert first[key] == second[key], key
    for selection in ("last", "best"):
        for key in ("logits", "prediction"):
            a, b = (np.load(f / f"predictions_{selection}.npz")[key] for f in (one, other))
            assert np.array_equal(a, b)
        a, b = (
            torch.load(f / f"checkpoints/{selection}.ckpt", weights_only=True) for f in (one, other)
        )
        for key in ("state_dict", "current_model_state"):
            assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
        assert a["global_step"] == b["global_step"]
        states = [c["optimizer_states"][0]["state"] for c in (a, b)]
        assert len(states[0]) == 5  # every parameter has its momentum, SAM or not
        for index, state in states[0].items():
            assert torch.equal(state["momentum_buffer"], states[1][index]["momentum_buffer"])
            assert state["momentum_buffer"].abs().sum() > 0


@pytest.mark.parametrize("val_fraction", [0, 0.2])
def test_a_loss_that_is_not_finite_stops_the_run(val_fraction, ltbench, tiny, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    schedule = {
        "class_path": "MultiStep",
        "init_args": {"warmup": 0, "milestones": [[2, 1e30]]},
    }
    overlay.write_text(yaml.safe_dump({"model": {"init_args": {"lr_schedule": schedule}}}))
    words = ["--config", tiny, "--config", overlay, "--data.init_args.val_fraction", val_fraction]
    done = ltbench("fit", *words)
    assert done.code == 2
    assert "epoch 2" in done.err
    assert "not finite" in done.err
    assert len(done.err.splitlines()) <= 3
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert record["status"] == "failed"
    assert "not finite" in record["cause"]
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert len(pd.read_csv(folder / "metrics.csv")) >= 2

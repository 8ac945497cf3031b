"""A training that goes wrong says where, and warns once."""

from types import SimpleNamespace

import pytest
import torch
from every_method import METHODS

from ltbench import methods as ltbench_methods
from ltbench.methods.cbgan.balance import ClassBalance
from ltbench.methods.cbgan.method import CBGAN
from ltbench.methods.erm import ERM
from ltbench.methods.fixmatch import FixMatch
from ltbench.optim.guard import FirstBadStep
from ltbench.runs.callbacks.anomalies import Anomalies

BAD = ((1, 2), (1, 3))  # epoch, step in it


def break_steps(class_, monkeypatch):
    """Make the loss of some steps of a method NaN."""
    whole, begin = class_.loss_of, class_.on_train_batch_start

    def loss_of(self, batch):
        found = whole(self, batch)
        if (self.current_epoch, self.batch) not in BAD:
            return found
        loss, *statistics = found if isinstance(found, tuple) else (found,)
        return (loss * float("nan"), *statistics) if statistics else loss * float("nan")

    def on_train_batch_start(self, batch, batch_idx):
        self.batch = batch_idx
        return begin(self, batch, batch_idx)

    monkeypatch.setattr(class_, "loss_of", loss_of)
    monkeypatch.setattr(class_, "on_train_batch_start", on_train_batch_start)


@pytest.fixture
def broken_steps(monkeypatch):
    """Make the loss of some steps NaN."""
    break_steps(ERM, monkeypatch)


def test_the_first_bad_step_is_remembered_with_its_images():
    found = FirstBadStep()
    nan = torch.tensor(float("nan"))
    found.watch(torch.tensor(1.0), 0, torch.tensor([5, 6]))
    assert str(found) == ""
    found.watch(nan, 1, torch.arange(10, 22))
    found.watch(torch.tensor(float("inf")), 2, torch.tensor([1]))
    assert str(found) == ("step 1, training images 10, 11, 12, 13, 14, 15, 16, 17, ... (12 in all)")


def test_a_bad_loss_names_epoch_step_images_and_the_last_good_checkpoint(
    broken_steps, refused, tiny, tmp_path
):
    told = refused("fit", "--config", tiny)
    assert "loss of epoch 1 is not finite (nan), first in step 9, training images " in told
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    assert str(checkpoint.relative_to(tmp_path)) in told
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in METHODS if method != "cbgan"])
def test_every_method_names_its_first_bad_step(method, of_method, ltbench, tmp_path, monkeypatch):
    break_steps(getattr(ltbench_methods, METHODS[method][0]), monkeypatch)
    done = ltbench("fit", "--config", of_method(method, epochs=3), "--name", "stopped")
    assert done.code == 2
    assert "loss of epoch 1 is not finite (nan), first in step " in done.err
    assert "training images " in done.err
    (checkpoint,) = tmp_path.glob("runs/stopped-*/checkpoints/last.ckpt")
    assert str(checkpoint.relative_to(tmp_path)) in done.err
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0


# --- a GAN: the loss of one player or of the other ---

# What is called in the second epoch's steps of one player alone, and which of its calls those are.
PLAYERS = {
    "discriminator": (CBGAN, "real_images", (18, 21)),
    "generator": (ClassBalance, "forward", (9, 11)),
}


@pytest.fixture(params=PLAYERS)
def broken_player(request, monkeypatch):
    """Make a player's loss NaN at some of its steps in the second epoch."""
    owner, name, bad = PLAYERS[request.param]
    whole, calls = getattr(owner, name), []

    def broken(self, *args):
        calls.append(0)
        found = whole(self, *args)
        return found * float("nan") if len(calls) in bad else found

    monkeypatch.setattr(owner, name, broken)


def test_a_gan_names_its_first_bad_step(broken_player, refused, of_method, tmp_path):
    told = refused("fit", "--config", of_method("cbgan", epochs=3))
    assert "the GAN diverged in epoch 1" in told
    assert "first in step " in told
    assert "training images " in told
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    assert str(checkpoint.relative_to(tmp_path)) in told
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0


def trainer_of(epoch, **logged):
    return SimpleNamespace(
        current_epoch=epoch,
        max_epochs=4,
        callback_metrics={f"{k}": torch.tensor(v) for k, v in logged.items()},
        global_step=0,
        training=True,
    )


def test_anomalies_are_told_once_each(caplog):
    seen, module = Anomalies(), FixMatch(10, 1, backbone="tiny_net")
    parameter, told = next(module.parameters()), []
    for epoch, size in enumerate([1.0, 50.0, 500.0, 5000.0]):
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[0] = size
        logged = {"train/kept_share": float(epoch < 1), "val/dead_classes": 2.0}
        seen.on_before_optimizer_step(trainer_of(epoch), module, None)
        seen.on_train_epoch_end(trainer_of(epoch, **logged), module)
        seen.on_validation_end(trainer_of(epoch, **logged), module)
        told.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    assert [len(lines) for lines in told] == [0, 1, 2, 0]
    assert "every pseudo-label was rejected" in told[1][0]
    assert "a gradient of norm 500; the first epoch's were 1." in told[2][0]
    assert "2 classes have a validation recall of 0" in told[2][1]


def test_an_empty_group_is_told(ltbench, tiny, caplog):
    ltbench("fit", "--config", tiny, "--trainer.max_epochs", "1", "--data.largest", "30")
    lines = [r.getMessage() for r in caplog.records if "many-shot (over 100)" in r.getMessage()]
    assert len(lines) == 1

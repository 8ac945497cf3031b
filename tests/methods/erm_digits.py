"""ERM on the digits with a tiny network."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from support import fit

from ltbench.data import LongTailDataModule
from ltbench.methods.erm import ERM
from ltbench.optim.schedules import Constant

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


def evaluate(state, data, split):
    """Logits of a state dict on a split, by hand."""
    model = ERM(10, 1, backbone="tiny_net")
    model.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
    model.eval()
    dataset = data.dataset(split)
    with torch.no_grad():
        logits = model(data.normalise(dataset.images))
    return logits.argmax(1).numpy(), dataset.labels.numpy()

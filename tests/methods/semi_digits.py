"""What the tests of semi-supervised methods share: the digits, a tiny network, short training."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from support import fit
from torch import nn

from ltbench.data.protocols import ReleasedProtocol
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.data.transforms.randaugment import RandAugment
from ltbench.methods.fixmatch import FixMatch


def build(method=FixMatch, seed=0, data=None, **options):
    """A data module of the digits and a small model with weights drawn from ``seed``."""
    L.seed_everything(seed, verbose=False)
    module = SemiSupervisedDataModule(
        **{
            "protocol": ReleasedProtocol(40, 10, 60, 10, val_per_class=10),
            "batch_size": 8,
            "mu": 3,
            "steps_per_epoch": 6,
            "augment": [RandomCrop(1)],
            "strong_augment": [RandAugment(3, None, "fixmatch", cutout=0.5)],
        }
        | (data or {})
    )
    return method(10, 1, **({"backbone": "tiny_net", "ema_decay": 0.9} | options)), module


def train(epochs=2, callbacks=(), **options):
    model, data = build(**options)
    return model, fit(model, data, epochs, callbacks)


class Traces(Callback):
    """Keep the traces of every epoch, when the record would."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append({name: value.clone() for name, value in pl_module.traces.items()})


def of_logits(method=FixMatch, classes=3, **options):
    """A model whose images are its logits."""
    model = method(classes, 1, **({"backbone": "tiny_net", "ema_decay": None} | options))
    model.net = nn.Identity()
    return model


def as_batch(labelled, labels, weak, strong):
    hidden = {"weak": weak, "strong": strong, "index": torch.arange(len(weak))}
    return {"image": labelled, "label": labels, "unlabelled": hidden}

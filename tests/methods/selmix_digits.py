"""SelMix on a small network that was trained on the digits."""

import copy

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from support import fit

from ltbench.data.protocols import ReleasedProtocol
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.methods.parts.stages import Trained
from ltbench.methods.selmix.method import SelMix
from ltbench.models import penultimate

START = """
seed_everything: 1
trainer: {max_epochs: 12, accelerator: cpu, devices: 1, enable_progress_bar: false}
model:
  class_path: ERM
  init_args:
    backbone: tiny_net
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}
    lr_schedule: Cosine
data:
  class_path: SemiSupervisedDataModule
  init_args: &data
    source: digits
    protocol:
      class_path: ReleasedProtocol
      init_args: {n1: 40, rho_l: 20, m1: 60, rho_u: 20, val_per_class: 20}
    batch_size: 32
    mu: 0
    steps_per_epoch: 10
"""


def digits(**options):
    return SemiSupervisedDataModule(
        **{
            "protocol": ReleasedProtocol(40, 20, 60, 20, val_per_class=20),
            "batch_size": 32,
            "mu": 0,
            "augment": [RandomCrop(1)],
        }
        | options
    )


def sgd(lr=0.01):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, weight_decay=5e-4)


def build(start, data=None, **options):
    L.seed_everything(0, verbose=False)
    defaults = {"init_from": Trained(str(start)), "cycle": 5, "optimizer": sgd()}
    return SelMix(10, 1, **defaults | options), data or digits()


def train(start, data=None, epochs=2, callbacks=(), **options):
    model, data = build(start, data, **options)
    return model, fit(model, data, epochs, callbacks, check_val_every_n_epoch=100)


class Looks(Callback):
    """Keep what each look found, when the record would, and the network that looked."""

    def __init__(self):
        self.traces, self.found, self.nets, self.batches = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.nets.append(copy.deepcopy(pl_module.net).eval())
        self.batches.append(batch)

    def on_train_epoch_end(self, trainer, pl_module):
        self.traces.append({name: value.clone() for name, value in pl_module.traces.items()})
        self.found.append(dict(trainer.callback_metrics))


def measure(net, data, split):
    """Labels, predictions and features of a split, image by image."""
    with torch.no_grad():
        batches = list(data.evaluation_batches(split, torch.device("cpu")))
        found = torch.cat([penultimate.features(net, batch["image"]) for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
    return labels, net.fc(found).argmax(1), found

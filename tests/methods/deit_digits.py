"""A small student of the digits, and what its steps saw."""

import copy
import functools

import lightning as L
import numpy as np
import support
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from ltbench.data import LongTailDataModule
from ltbench.methods.deit_lt.method import DeiTLT

DIGITS = {"imbalance_factor": 10, "largest": 60, "val_fraction": 0.2, "batch_size": 32}


STUDENT = {
    "backbone": "deit_tiny_distilled_patch4_32",
    "backbone_args": {
        **{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "drop_path_rate": 0.1,
    },
    "optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05),
    "decay_norms": False,
}


fit = functools.partial(support.fit, limit_val_batches=0)


def build(seed=0, data=None, **options):
    L.seed_everything(seed, verbose=False)
    module = LongTailDataModule("digits", **{**DIGITS, **(data or {})})
    return DeiTLT(10, 1, **{**STUDENT, **options}), module


def train(epochs=1, callbacks=(), trainer=None, **options):
    model, data = build(**options)
    return model, fit(model, data, epochs, callbacks, **(trainer or {}))


class Steps(Callback):
    """Keep what each step prepared, with its epoch and the weights of DIST."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer, pl_module):
        original = pl_module.prepare_step

        def prepare_step(batch):
            labels = batch["label"].clone()
            prepared = original(batch)
            self.seen.append((trainer.current_epoch, labels, prepared, pl_module.weight))
            return prepared

        pl_module.prepare_step = prepare_step


def by_hand(model, prepared, weight, form="normalised", soft=False):
    """Both terms for a whole batch in NumPy."""
    net = copy.deepcopy(model.net).double().eval()
    with torch.no_grad():
        tokens = net.forward_features(prepared["image"].double())
        cls, dist = (
            z.log_softmax(1).numpy() for z in (net.head(tokens[:, 0]), net.head_dist(tokens[:, 1]))
        )
    targets = prepared["target"]
    if not targets.is_floating_point():
        targets = F.one_hot(targets, 10)
    first = -(targets.numpy() * cls).sum(1).mean()
    taught = prepared["taught"].numpy()
    if soft:
        teacher = prepared["taught"].double().log_softmax(1).numpy()
        losses = (np.exp(teacher) * (teacher - dist)).sum(1) / 10
        taught = taught.argmax(1)
    else:
        losses = -dist[np.arange(len(dist)), taught]
    if weight is None:
        return first, losses.mean()
    w = weight.double().numpy()[taught]
    return first, (w * losses).sum() / (w.sum() if form == "normalised" else len(w))

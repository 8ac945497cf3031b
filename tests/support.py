"""What tests of whole runs share: a tiny network, config and record, the command in-process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from functools import reduce
from operator import getitem
from types import SimpleNamespace

import lightning as L
import numpy as np
import timm.models
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn

from ltbench.cli import main
from ltbench.models import penultimate

COUNTS, SUPPORT = [120, 60, 15], 40  # of made-up records: training images, test images of a class


class TinyNet(nn.Module):
    """One convolution with batch norm, dropout and a linear head: trains in milliseconds."""

    def __init__(self, num_classes=10, in_chans=3, drop_rate=0.0):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.drop_rate = drop_rate
        self.fc = nn.Linear(4 * 16, num_classes)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward_head(self, x, pre_logits=False):
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@timm.models.register_model
def tiny_net(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):
    return TinyNet(**{k: v for k, v in kwargs.items() if k != "cache_dir"})


class FlatNet(nn.Module):
    """A network without batch norm and dropout: any part of a batch gives the same."""

    def __init__(self, num_classes=10, in_chans=1):
        super().__init__()
        self.features, self.fc = nn.Linear(64 * in_chans, 16), nn.Linear(16, num_classes)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return self.features(x.flatten(1)).tanh()

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@timm.models.register_model
def flat_net(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):
    return FlatNet(**{k: v for k, v in kwargs.items() if k != "cache_dir"})


class Experts(nn.Module):
    """A shared stem and three experts, each a late stage and a head: declared, nothing else."""

    def __init__(self, num_classes=10, in_chans=1):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(nn.Conv2d(8, 6 + k, 3) for k in range(3))
        self.heads = nn.ModuleList(nn.Linear(6 + k, num_classes) for k in range(3))

    def head_classifiers(self):
        return {f"expert{k}": head for k, head in enumerate(self.heads)}

    def head_features(self, images):
        seen = self.stem(images).relu()
        return {
            f"expert{k}": stage(seen).relu().mean((2, 3)) for k, stage in enumerate(self.stages)
        }

    def forward(self, images):
        return penultimate.outputs(self, images)[""]


@timm.models.register_model
def three_experts(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):
    return Experts(**{k: v for k, v in kwargs.items() if k != "cache_dir"})


def fit(model, data, epochs=1, callbacks=(), resume=None, **options):
    """Train in this process, and return the trainer; ``options`` are its own."""
    trainer = L.Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "callbacks": list(callbacks),
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | options
    )
    start = {"ckpt_path": resume, "weights_only": True} if resume else {}
    trainer.fit(model, datamodule=data, **start)
    return trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def run_command(*words, cwd):
    """Run ``ltbench`` in this process, in folder ``cwd``; return its code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGINT)  # Lightning switches Ctrl-C off when it comes
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def run_script(path, *words):
    """Run a script that calls ``main()`` as a process in its own folder, to its good end."""
    done = subprocess.run(
        [sys.executable, path.name, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LTBENCH_TRUST": path.stem},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_same(one, other, where="", same=torch.equal):
    """Compare what may hold tensors: bit for bit, or as ``same`` says."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}", same)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{place}", same)
    elif isinstance(one, torch.Tensor):
        assert same(one.nan_to_num(), other.nan_to_num()), where
    else:
        assert repr(one) == repr(other), where  # a NaN is itself


def columns(table):
    """The cells of a printed result table, by row."""
    rows = (line.strip("│").split("│") for line in table.splitlines() if line.startswith("│"))
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def only_run(home):
    """The only run folder below ``home/runs``."""
    (folder,) = (home / "runs").iterdir()
    return folder


TINY = """
seed_everything: 3
trainer:
  max_epochs: 4
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
model:
  class_path: ERM
  init_args:
    backbone: tiny_net
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.2, momentum: 0.9}
    lr_schedule: Constant
data:
  class_path: LongTailDataModule
  init_args:
    source: digits
    imbalance_factor: 10
    largest: 60
    val_fraction: 0.2
    batch_size: 32
    augment:
      - class_path: RandomCrop
        init_args: {padding: 1}
"""


def write_images(folder, counts, size=12, seed=0):
    """Write ``folder/<class>/<n>.png``: noise around a colour of the class."""
    draw = np.random.default_rng(seed)
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        colour = np.random.default_rng(c).integers(40, 216, 3)
        for i in range(count):
            pixels = (colour + draw.integers(-30, 30, (size, size, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


def pixels(*shape, seed=0):
    """Noise: an array of uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def change_record(folder, **changes):
    """Change parts of a run's record; ``a__b`` is part b of part a."""
    path = folder / "record.json"
    record = json.loads(path.read_text())
    for name, value in changes.items():
        *above, last = name.split("__")
        reduce(getitem, above, record)[last] = value
    path.write_text(json.dumps(record))


def record_of(name="ce", seed=0, **changes):
    """A record as a finished run leaves it, without metrics."""
    return {
        "schema": 1,
        "job_id": f"{name}-{seed}",
        "name": name,
        "method": "erm",
        "dataset": "digits",
        "stage": "train",
        "lineage": [],
        "config": {
            "seed_everything": seed,
            "name": name,
            "trainer": {"max_epochs": 4, "default_root_dir": "runs"},
            "model": {
                "class_path": "ERM",
                "init_args": {"backbone": "resnet32_cifar", "loss": name},
            },
            "data": {"init_args": {"root": f"/somewhere/{seed}", "augment": []}},
        },
        "seed": seed,
        "data": {
            "source": "Digits",
            "class_names": ["ant", "bee", "cat"],
            "class_counts": COUNTS,
            "images": {"train": sum(COUNTS), "test": 3 * SUPPORT},
            "index_hash": "f" * 64,
        },
        "metrics": {},
        "weights": "raw",
        "deviations": [],
        "versions": {"ltbench": "0.1.0"},
        "git": {"commit": "c" * 40, "dirty": False},
        "device": "AVX512 CPU, 2 cores",
        "threads": 1,
        "precision": "32-true",
        "world_size": 1,
        "batch_size": 32,
        "parameters": 1000,
        "epochs": 4,
        "steps": 28,
        "images_seen": 780,
        "wall_seconds": 10.0,
        "images_per_second": 78.0,
        "peak_memory_bytes": 2**30,
        "status": "done",
        "cause": None,
        **changes,
    }

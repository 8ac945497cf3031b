"""What tests of whole runs share: a tiny network, a tiny config, the command line in-process."""

import contextlib
import io
import os
import signal
from types import SimpleNamespace

import numpy as np
import timm.models
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ltbench.cli import main


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

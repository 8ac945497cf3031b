"""What the tests of whole runs share: a tiny network, tiny data, the command line in-process."""

import contextlib
import io
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import timm.models
import torch.nn.functional as F
import yaml
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


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Give each test, and what runs after it, an environment without a seed or a data folder."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "LTBENCH_DATA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


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


@pytest.fixture
def ltbench(tmp_path):
    """The command line, run in the test's own folder."""

    def run(*words, cwd=tmp_path):
        return run_command(*words, cwd=cwd)

    return run


@pytest.fixture
def refused(ltbench):
    """The command line, expected to refuse: code 2, a short message and no traceback."""

    def run(*words, code=2, **options):
        done = ltbench(*words, **options)
        assert (done.code, done.out) == (code, "")
        assert done.err.startswith("error: ")
        assert len(done.err.splitlines()) <= 3
        assert "Traceback" not in done.err
        return done.err

    return run


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


@pytest.fixture
def tiny(tmp_path):
    """A config of a run of some seconds: 4 epochs of 6 steps on the digits."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """One finished run of the tiny config, not to be changed; its folder and its config."""
    home = tmp_path_factory.mktemp("digits_run")
    config = home / "tiny.yaml"
    config.write_text(TINY)
    done = run_command("fit", "--config", config, cwd=home)
    assert done.code == 0, done.err
    (folder,) = (home / "runs").iterdir()
    checkpoints = folder / "checkpoints"
    return SimpleNamespace(
        config=config, folder=folder, last=checkpoints / "last.ckpt", best=checkpoints / "best.ckpt"
    )


def write_images(folder, counts, size=12, seed=0):
    """Write ``folder/<class>/<n>.png``: noise around a colour of the class."""
    draw = np.random.default_rng(seed)
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        colour = np.random.default_rng(c).integers(40, 216, 3)
        for i in range(count):
            pixels = (colour + draw.integers(-30, 30, (size, size, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


@pytest.fixture
def make_images():
    """The writer of class folders full of images."""
    return write_images


@pytest.fixture
def images(tmp_path):
    """A long-tailed folder of images in three classes, and what a config says of it."""
    write_images(tmp_path / "images/train", {"ant": 20, "bee": 9, "cat": 3})
    write_images(tmp_path / "images/test", {"ant": 4, "bee": 4, "cat": 5}, seed=1)
    return tmp_path / "images"


@pytest.fixture
def of_folder(tmp_path, images):
    """The tiny config on that folder."""
    config = yaml.safe_load(TINY)
    config["data"]["init_args"] = {
        "source": "folder",
        "root": str(images),
        "profile": "natural",
        "batch_size": 8,
    }
    config["trainer"]["max_epochs"] = 1
    path = tmp_path / "of_folder.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

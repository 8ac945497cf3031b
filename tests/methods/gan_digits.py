"""A small GAN of the digits, from the command line."""

import torch

from ltbench.methods.cbgan.method import CBGAN, Balance
from ltbench.methods.parts.stages import Trained
from ltbench.models.gan import Architecture

GAN = """
seed_everything: 3
trainer: {max_epochs: 4, check_val_every_n_epoch: 2, accelerator: cpu, devices: 1,
          enable_progress_bar: false}
model:
  class_path: CBGAN
  init_args:
    architecture: {image_size: 8, width: 4, latent: 8}
    balance: {update_every: 4, pending: 0}
    ema_decay: 0.8
    ema_start: 6
    samples: 90
    watch_samples: 40
data:
  class_path: LongTailDataModule
  init_args: {source: digits, imbalance_factor: 10, largest: 60, val_fraction: 0.0,
              watch_test: true, batch_size: 32, eval_batch_size: 32}
"""


MODEL = "--model"


def state(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def only_gan(path):
    (folder,) = path.glob("runs/gan-*")
    return folder


def build(**options):
    torch.manual_seed(0)
    architecture = Architecture(image_size=8, width=4, latent=8)
    trained = Trained("nowhere")
    return CBGAN(10, 1, architecture, balance=Balance(), classifier=trained, **options)

"""CBGAN: the regulariser balances what a GAN generates."""

import numpy as np
import pytest
import torch
import yaml
from gan_digits import GAN, MODEL
from PIL import Image
from support import TINY, run_command
from torch import nn

from ltbench.methods.cbgan.balance import ClassBalance
from ltbench.methods.cbgan.losses import gan_loss
from ltbench.metrics.generation import kl_to_uniform
from ltbench.records import read_record


class Toy:
    """Five Gaussians on a circle, 1000 to 10 points, and a classifier that knows them."""

    def __init__(self):
        angles = torch.arange(5) * 2 * torch.pi / 5
        self.modes = 2 * torch.stack([angles.cos(), angles.sin()], 1)
        counts = torch.tensor([1000, 316, 100, 31, 10])
        draws = torch.Generator().manual_seed(0)
        labels = torch.arange(5).repeat_interleave(counts)
        self.data = self.modes[labels] + 0.15 * torch.randn(len(labels), 2, generator=draws)

    def classifier(self, points):
        return -torch.cdist(points, self.modes).square() / 0.5

    def train(self, strength, seed):
        torch.manual_seed(seed)
        act = nn.LeakyReLU(0.1)
        generator = nn.Sequential(nn.Linear(8, 64), act, nn.Linear(64, 64), act, nn.Linear(64, 2))
        discriminator = nn.Sequential(
            nn.Linear(2, 64), act, nn.Linear(64, 64), act, nn.Linear(64, 1)
        )
        optimizers = [
            torch.optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.999))
            for net in (generator, discriminator)
        ]
        loss, balance = gan_loss("relativistic"), ClassBalance(5, pending=0)
        for step in range(1, 601):
            real = self.data[torch.randint(len(self.data), (128,))].requires_grad_()
            scores = discriminator(real)
            (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            fake = discriminator(generator(torch.randn(128, 8)).detach())
            penalty = 0.05 * slope.square().sum(1).mean()  # steadies the toy; no part of CBGAN
            self.step(optimizers[1], loss.discriminator(scores, fake) + penalty)
            points = generator(torch.randn(128, 8))
            adversarial = loss.generator(discriminator(real), discriminator(points))
            regulariser = balance(self.classifier(points))
            self.step(optimizers[0], adversarial + strength * regulariser)
            if step % 20 == 0:
                balance.update()
        with torch.no_grad():
            nearest = torch.cdist(generator(torch.randn(5000, 8)), self.modes).min(1)
        kl = kl_to_uniform(torch.bincount(nearest.indices, minlength=5))
        return kl, float((nearest.values < 3 * 0.15).float().mean())

    @staticmethod
    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_regulariser_balances_five_gaussians(seed):
    toy = Toy()
    balance, fidelity = zip(*(toy.train(strength, seed) for strength in (0, 1, 5)), strict=True)
    assert balance[0] > 0.5
    assert balance[1] < 0.3
    assert balance[2] < 0.05
    assert fidelity[0] > fidelity[1] > fidelity[2]  # what balance is bought with


def discs(folder, counts, seed):
    """Write 16 x 16 images of a disc of the class's hue at a random place."""
    draws = np.random.default_rng(seed)
    rows, cols = np.mgrid[:16, :16]
    for c, count in enumerate(counts):
        (folder / f"{c}").mkdir(parents=True)
        wheel = np.clip(2 - np.abs((c * 0.6 + np.array([0, 4, 2])) % 6 - 3), 0, 1)
        for i in range(count):
            radius, (y, x) = draws.uniform(3, 4.5), draws.uniform(4, 12, 2)
            inside = ((rows - y) ** 2 + (cols - x) ** 2 < radius**2)[..., None]
            image = np.where(inside, wheel, 0.15) + draws.normal(0, 0.03, (16, 16, 3))
            pixels = (image.clip(0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{c}/{i:04}.png")


DISCS = yaml.safe_load(GAN)
DISCS["trainer"] |= {"max_epochs": 26, "check_val_every_n_epoch": 26}  # 1014 iterations
DISCS["model"]["init_args"] |= {
    "architecture": {"image_size": 16, "width": 16, "latent": 32},
    "optimizer": {
        "class_path": "torch.optim.Adam",
        "init_args": {"lr": 4e-4, "betas": [0.5, 0.999], "eps": 1e-6},
    },
    "ema_start": 10**9,
    "samples": 2000,
    "watch_samples": 500,
}
DISCS["data"]["init_args"] = {
    "source": "folder",
    "profile": "natural",
    "val_fraction": 0.0,
    "batch_size": 64,
}


@pytest.mark.paper
@pytest.mark.slow
def test_the_regulariser_balances_generated_images(tmp_path):
    """On 2,478 images of ten hues, counts 1000 to 10, judged by an annotator of balanced data."""
    tail = [int(1000 * 0.01 ** (k / 9)) for k in range(10)]
    assert sum(tail) == 2478
    discs(tmp_path / "tail/train", tail, 0)
    discs(tmp_path / "balanced/train", [200] * 10, 1)
    for name in ("tail", "balanced"):
        discs(tmp_path / name / "test", [100] * 10, 2)
    tiny = yaml.safe_load(TINY)
    tiny["data"]["init_args"] = DISCS["data"]["init_args"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "gan.yaml").write_text(yaml.safe_dump(DISCS))
    runs = {}
    for name, root, net, epochs in (
        ("classifier", "tail", "tiny_net", 20),
        ("annotator", "balanced", "tiny_net", 20),
        ("fid_features", "balanced", "resnet32_cifar", 1),
    ):
        words = [
            *("--name", name, "--data.init_args.root", tmp_path / root),
            *(f"{MODEL}.backbone", net, "--trainer.max_epochs", epochs),
        ]
        done = run_command("fit", "--config", "tiny.yaml", *words, cwd=tmp_path)
        assert done.code == 0, done.err
        (runs[name],) = tmp_path.glob(f"runs/{name}-*")
        recall = read_record(runs[name] / "record.json")["metrics"]["last"]["test"]["mean_recall"]
        assert recall > 0.95 or name == "fid_features"
    found = {}
    for strength in (0, 10):
        words = [
            *("--config", "gan.yaml", "--data.init_args.root", tmp_path / "tail"),
            *(word for role, run in runs.items() for word in (f"{MODEL}.{role}.path", run)),
        ]
        balance = [f"{MODEL}.balance", "null"]
        if strength:
            balance = [f"{MODEL}.balance.strength", strength, f"{MODEL}.balance.update_every", 50]
        done = run_command("fit", *words, *balance, "--name", f"gan{strength}", cwd=tmp_path)
        assert done.code == 0, done.err
        (run,) = tmp_path.glob(f"runs/gan{strength}-*")
        found[strength] = read_record(run / "record.json")["metrics"]["last"]["test"]
    assert found[0]["kl_to_uniform"] > 0.5
    assert found[10]["kl_to_uniform"] < 0.15
    assert found[10]["min_class_share"] > 0.03

"""Every method on a GPU: no step waits for it, and what it finds is what the CPU finds.

``make gpu-check`` runs these; ``pytest -m gpu --rehearse`` tries them on the CPU.
"""

import json
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from every_method import METHODS
from lightning.pytorch.callbacks import Callback
from test_waits import EXCEPTIONS

from ltbench import seeding
from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.sources import files
from ltbench.data.transforms.basic import on_host
from ltbench.runs.experiment import build
from ltbench.runs.finished import open_run
from ltbench.runs.training import Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # a new warning of a driver is no failure
]
GPU = torch.cuda.is_available()
ACCELERATOR = "cuda" if GPU else "cpu"
DEVICE = torch.device(ACCELERATOR)


class NoWaits(Callback):
    """Have torch refuse what waits for the GPU within the steps of an epoch after the first."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and GPU:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if GPU and batch_idx + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def waits_allowed_after():
    try:
        yield
    finally:
        if GPU:
            torch.cuda.set_sync_debug_mode("default")


def train(path, *callbacks, **options):
    words = {"trainer.accelerator": ACCELERATOR, "trainer.log_every_n_steps": "100", **options}
    training = Training(build(path, words))
    training.trainer.callbacks.extend(callbacks)
    with waits_allowed_after():
        training.run()
    return json.loads(training.context.folder.record.read_text())


@pytest.mark.parametrize("method", METHODS)
def test_no_step_of_a_method_waits(method, of_method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    watch = [] if method in EXCEPTIONS else [NoWaits()]
    record = train(of_method(method, epochs=2), *watch)
    assert record["status"] == "done"
    assert ("CPU" in record["device"]) != GPU
    assert record["peak_memory_bytes"] > 0


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_precisions_and_compiling(precision, compiled, of_method, monkeypatch, tmp_path):
    if precision == "16-mixed" and not GPU:
        pytest.skip("no 16-mixed on a CPU")
    monkeypatch.chdir(tmp_path)
    options = {"trainer.precision": precision, "model.compile": compiled}
    record = train(of_method("fixmatch", epochs=1), **options)
    assert record["status"] == "done"
    assert record["precision"] == precision


def test_a_run_of_the_gpu_says_the_same_on_the_cpu(tiny, ltbench, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    train(tiny)
    (run,) = (tmp_path / "runs").iterdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8)
    there, here = (open_run(run, device=name).predict(pixels) for name in (ACCELERATOR, "cpu"))
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-3)
    for analysis in ("hessian --steps 3 --runs 1 --images 8", "features"):
        name, *options = analysis.split()
        tables = []
        for device in (ACCELERATOR, "cpu"):
            words = ["--run", run, "--device", device, "--output", device]
            done = ltbench("analyze", name, *words, *options)
            assert done.code == 0, done.err
            tables += map(pd.read_csv, (tmp_path / device).glob(f"{name}*.csv"))
        if name == "features":
            one, other = (table.select_dtypes("number") for table in tables)
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


def test_decoded_batches_are_pinned(images, monkeypatch):
    monkeypatch.setattr(files, "MEMORY_BUDGET", 0)
    monkeypatch.setattr(LongTailDataModule, "device", DEVICE)
    data = LongTailDataModule("folder", str(images), profile="natural", batch_size=8)
    data.setup()
    for loader in (data.train_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert all(value.is_pinned() == GPU for value in batch.values())
    (first, *_) = data.evaluation_batches("test", DEVICE)
    assert first["image"].device.type == DEVICE.type


def test_draws_of_the_host_follow_the_generator_of_the_gpu():
    own = seeding.generator(DEVICE, 3, "here")
    torch.rand(4, generator=own, device=DEVICE)
    if GPU:
        first, again = (torch.rand(4, generator=on_host(own)) for _ in range(2))
        assert torch.equal(first, again)
        torch.rand(4, generator=own, device=DEVICE)
        assert not torch.equal(first, torch.rand(4, generator=on_host(own)))
    else:
        assert on_host(own) is own


def test_both_passes_of_sam_drop_the_same_units(tiny, monkeypatch, tmp_path):
    """With a radius of almost zero SAM follows the plain gradient, so the draws are the same."""
    monkeypatch.chdir(tmp_path)
    losses = []
    for rule in ("Plain", "SAM"):
        options = {"model.backbone_args": '{"drop_rate": 0.5}', "model.gradient_rule": rule}
        options |= {"name": rule.lower(), "trainer.max_epochs": "1"}
        options |= {"model.gradient_rule.rho": "1e-7"} if rule == "SAM" else {}
        train(tiny, **options)
        (curves,) = (tmp_path / "runs").glob(f"{rule.lower()}-*/metrics.csv")
        header, row = (line.split(",") for line in curves.read_text().split()[:2])
        losses.append(float(dict(zip(header, row, strict=True))["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)

"""Within a step no method waits for its device, as it would if it looked at a number there.

Where no GPU is, one is emulated (``emulated_device``).
"""

import pytest
import torch
from emulated_device import DEVICE, DeviceGenerator
from lightning.pytorch.callbacks import Callback

from ltbench.data.transforms.autoaugment import AutoAugment
from ltbench.data.transforms.basic import Cutout, HorizontalFlip, RandomCrop, on_host
from ltbench.data.transforms.colour import ColorJitter, GaussianBlur, Grayscale
from ltbench.data.transforms.erasing import RandomErasing
from ltbench.data.transforms.randaugment import RandAugment
from ltbench.data.transforms.resized_crop import RandomResizedCrop
from ltbench.runs.experiment import build
from ltbench.runs.training import Training

STEPS = 5  # of which the first may make what the others use

UPDATE = "update_multipliers"  # measures the network on held-out images, every few steps
PADDING = "create_bidirectional_mask"  # of transformers: looks whether a text is padded
EXCEPTIONS = {"csst": {UPDATE}, "csst_text": {UPDATE, PADDING}}


class Steps(Callback):
    """Watch the steps after the first, with all that is between them; then end the training."""

    class Done(Exception):
        """All of them were taken."""

    def __init__(self, device):
        self.device = device

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.device.watching = 1 <= batch_idx < STEPS
        if batch_idx == STEPS:
            raise self.Done


def test_no_step_waits_for_its_device(method, of_method, device, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    steps, training = Steps(device), Training(build(of_method(method)))
    training.trainer.callbacks.append(steps)
    with pytest.raises(Steps.Done):
        training.run()
    named = EXCEPTIONS.get(method, set())
    waits = [(wait, wait.callers & named) for wait in device.waits]
    assert [(wait.operation, wait.line) for wait, why in waits if not why] == []
    assert {name for _, why in waits for name in why} == named  # all of them still wait


@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop(4),
        HorizontalFlip(),
        Cutout(8),
        RandAugment(2, 9),
        RandAugment(3, None, "fixmatch", cutout=0.5),
        AutoAugment(),
        ColorJitter(0.4, 0.4, 0.4, 0.1),
        Grayscale(),
        GaussianBlur(),
        RandomErasing(),
        RandomResizedCrop(16),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_no_augmentation_waits_for_its_device(transform, device):
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    device.watching = True
    augmented = transform(images, DeviceGenerator().manual_seed(0))
    assert augmented.device == DEVICE
    assert augmented.dtype == torch.uint8
    assert device.waits == []


def test_a_look_at_the_device_is_noticed(device):
    values, pairs = torch.rand(3, device=DEVICE), torch.zeros(3, 2, device=DEVICE)
    host = torch.zeros(3)
    device.watching = True
    for look in (
        lambda: values[0].item(),
        lambda: float(values.sum()),
        lambda: bool(values[0] > 0),
        lambda: 1 if values[0] > 0 else 0,
        values.cpu,
        values.tolist,
        lambda: host.copy_(values),
        lambda: values[values > 0],
        lambda: pairs.__setitem__(values > 0, values[:2]),
        lambda: values.nonzero(),
        lambda: torch.where(values > 0),
        lambda: values.unique(),
        lambda: torch.equal(values, values),
        lambda: torch.bincount(values.long()),
        lambda: torch.tensor([1.0], device=DEVICE),
        lambda: values.new_tensor([1.0]),
        lambda: torch.zeros(1).to(DEVICE),
        lambda: values.copy_(host),
    ):
        device.waits.clear()
        look()
        assert len(device.waits) == 1, device.waits
    device.waits.clear()
    assert torch.ones(1).to(DEVICE, non_blocking=True).device == DEVICE
    values.copy_(host, non_blocking=True)
    values[0] = 1.0
    pairs[values.long()] += values.sum()
    assert device.waits == []


class OfGPU:
    """Stands in for a generator of a GPU, whose state is its seed and how much it has drawn."""

    device = torch.device("cuda")

    def __init__(self, drawn):
        self.state = torch.tensor([7, 0, 0, 0, 0, 0, 0, 0, drawn, 0, 0, 0, 0, 0, 0, 0])

    def get_state(self):
        return self.state.to(torch.uint8)


def test_draws_of_the_host_follow_the_generator_of_a_device():
    ours = torch.Generator().manual_seed(3)
    assert on_host(ours) is ours
    first, again, later = (torch.rand(4, generator=on_host(OfGPU(n))) for n in (4, 4, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)

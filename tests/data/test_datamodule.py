"""The data module: splits, batches, exact evaluation, and nothing global touched."""

import random

import numpy as np
import pytest
import torch
from data_support import trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench import seeding
from ltbench.data import LongTailDataModule
from ltbench.data.base import DataModule
from ltbench.data.datasets import DecodedImages, MemoryImages
from ltbench.data.profiles import class_counts
from ltbench.data.sources import cifar, files, inaturalist
from ltbench.data.transforms.basic import HorizontalFlip, RandomCrop
from ltbench.errors import UserError


def digits(**options):
    data = LongTailDataModule("digits", **options)
    data.setup()
    return data


def batches_of(loader):
    """The batches of a loader as one."""
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


# --- splits ---


def test_counts_are_those_of_the_profile_less_validation():
    whole = digits(imbalance_factor=10, largest=100, val_fraction=0)
    expected = class_counts(100, 10, 10)
    assert whole.class_counts.tolist() == expected
    assert whole.splits.keys() == {"train", "test"}
    data = digits(imbalance_factor=10, largest=100, val_fraction=0.2)
    val = np.bincount(data.splits["val"].labels, minlength=10)
    assert (data.class_counts + val).tolist() == expected
    assert np.abs(val - 0.2 * np.array(expected)).max() <= 0.5  # stratified
    assert np.bincount(data.splits["test"].labels).tolist() == [40] * 10


def test_the_largest_class_takes_what_every_class_could_give():
    available = np.bincount(digits().source.labels("train")).min()
    assert digits(val_fraction=0).class_counts[0] == available


def test_natural_keeps_all():
    data = digits(profile="natural", val_fraction=0)
    assert len(data.splits["train"].labels) == 1397


@settings(max_examples=20, deadline=None)
@given(
    fraction=st.floats(0.01, 0.9),
    factor=st.floats(1, 100),
    seed=st.integers(0, 5),
    kind=st.sampled_from(["exp", "step", "pareto", "balanced", "natural"]),
)
def test_validation_comes_from_training_and_never_from_test(fraction, factor, seed, kind):
    data = digits(profile=kind, imbalance_factor=factor, val_fraction=fraction, subset_seed=seed)
    train, val, test = (data.splits[name] for name in ("train", "val", "test"))
    assert (train.part, val.part, test.part) == ("train", "train", "test")
    assert not set(train.indices) & set(val.indices)
    assert len(set(train.indices)) == len(train.indices)
    labels = data.source.labels("train")
    for split in (train, val):
        assert np.array_equal(split.labels, labels[split.indices])
    assert data.class_counts.min() >= 1


def test_a_validation_folder_is_used_as_it_is(images, make_images):
    make_images(images / "val", {"ant": 2, "bee": 1, "cat": 1})
    data = LongTailDataModule("folder", str(images), profile="natural", val_fraction=0.5)
    data.setup()
    assert data.splits["val"].part == "val"
    assert data.class_counts.tolist() == [20, 9, 3]
    assert data.describe()["images"] == {"val": 4, "train": 32, "test": 13}


def test_single_images_leave_no_validation_split(make_images, tmp_path):
    make_images(tmp_path / "train", {"ant": 1, "bee": 1})
    data = LongTailDataModule("folder", str(tmp_path), profile="natural", val_fraction=0.5)
    data.setup()
    assert data.splits.keys() == {"train"}
    assert data.class_counts.tolist() == [1, 1]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_images_is_refused(split, images):
    for path in (images / split).rglob("*.png"):
        path.unlink()
    (images / split / "ant").mkdir(parents=True, exist_ok=True)
    data = LongTailDataModule("folder", str(images), profile="natural")
    with pytest.raises(UserError, match=split):
        data.setup()


def test_the_hash_names_the_training_images():
    options = {"imbalance_factor": 10, "largest": 50}
    reference = digits(**options)
    assert digits(**options).index_hash == reference.index_hash
    same = {"batch_size": 7, "eval_batch_size": 3, "watch_test": True}
    assert digits(**options, **same).index_hash == reference.index_hash
    for change in ({"subset_seed": 1}, {"val_fraction": 0.2}, {"imbalance_factor": 11}):
        assert digits(**{**options, **change}).index_hash != reference.index_hash


def test_the_run_seed_changes_nothing_of_the_subset(monkeypatch):
    reference = digits().index_hash
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert digits().index_hash == reference


def test_setup_is_the_same_at_every_call():
    data = digits()
    splits = dict(data.splits)
    data.setup("fit")
    data.setup("test")
    assert all(data.splits[name] is split for name, split in splits.items())


def test_nothing_global_is_touched():
    def states():
        legacy = [np.asarray(part).tolist() for part in np.random.get_state()]
        return random.getstate(), legacy, torch.get_rng_state().tolist()

    before = states()
    data = digits(augment=[RandomCrop(1), HorizontalFlip()], watch_test=True)
    for name in data.splits:
        data.on_after_batch_transfer(data.dataset(name)[0], 0)
    data.trainer = trainer()
    data.on_after_batch_transfer(data.dataset("train")[0], 0)
    list(data.train_dataloader().sampler)
    data.describe()
    assert states() == before


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match="val_fraction"):
        LongTailDataModule("digits", val_fraction=fraction)


def test_describe():
    data = digits(imbalance_factor=10, largest=60, val_fraction=0)
    facts = data.describe()
    assert facts["class_counts"] == class_counts(60, 10, 10)
    assert facts["imbalance_factor"] == 10
    assert facts["class_names"] == [str(c) for c in range(10)]
    assert facts["images"] == {"train": sum(facts["class_counts"]), "test": 400}
    assert (facts["source"], facts["profile"]) == ("Digits", "exp")
    assert facts["index_hash"] == data.index_hash
    assert facts["head_mid_tail"] == [3, 4, 3]


def test_head_mid_and_tail_are_those_of_the_papers_or_else_30_40_30(tmp_path, make_images):
    """A set of one's own with as many classes as CIFAR-100 is not CIFAR-100."""
    make_images(tmp_path / "train", {f"c{n:02}": 1 for n in range(100)}, size=4)
    own = LongTailDataModule("folder", root=str(tmp_path), profile="natural", val_fraction=0)
    assert own.head_mid_tail == (30, 40, 30)
    assert cifar.Cifar100.head_mid_tail == (36, 35, 29)
    assert inaturalist.INaturalist2019.head_mid_tail is None


# --- loaders ---


def test_training_batches_hold_each_image_once_in_a_fresh_order():
    data = digits(batch_size=48)
    loader = data.train_dataloader()
    sizes = [len(batch["label"]) for batch in loader]
    total = len(data.splits["train"].labels)
    assert sizes == [48] * (total // 48) + ([total % 48] if total % 48 else [])
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batch = batches_of(loader)
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (total, 1, 8, 8)
        assert sorted(batch["index"].tolist()) == sorted(data.splits["train"].indices)
        labels = data.source.labels("train")[batch["index"]]
        assert batch["label"].tolist() == labels.tolist()
        assert torch.equal(batch["image"], data.source.images("train", batch["index"]))
        orders.append(batch["index"].tolist())
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_the_order_follows_the_seed(monkeypatch):
    data = digits()
    orders = []
    for seed in ("1", "1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        orders.append(batches_of(data.train_dataloader())["index"].tolist())
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_evaluation_sees_each_image_once_in_order(size):
    data = digits(eval_batch_size=size, watch_test=True)
    assert data.watched == ["val", "test"]
    val, test = (batches_of(loader) for loader in data.val_dataloader())
    assert val["index"].tolist() == data.splits["val"].indices.tolist()
    assert test["index"].tolist() == list(range(400))
    assert torch.equal(batches_of(data.test_dataloader())["image"], test["image"])


def test_watched_splits():
    assert digits(val_fraction=0).watched == []
    assert digits(val_fraction=0, watch_test=True).watched == ["test"]
    assert digits(val_fraction=0).val_dataloader() == []


@pytest.mark.parametrize(("size", "world", "next_one"), [(32, 3, 33), (100, 8, 104)])
def test_a_batch_that_the_ranks_do_not_divide(size, world, next_one):
    data = digits(batch_size=size)
    data.trainer = trainer(world=world)
    with pytest.raises(UserError, match=f"batch_size {size}") as told:
        data.train_dataloader()
    assert f" {next_one}." in str(told.value)


def test_the_batch_is_that_of_all_ranks():
    data = digits(batch_size=32)
    data.trainer = trainer(world=4)
    assert data.train_dataloader().batch_size == 8


def test_a_split_that_is_not_there_is_named(images):
    data = LongTailDataModule("folder", str(images), profile="natural", val_fraction=0)
    data.setup()
    with pytest.raises(UserError, match="val"):
        data.dataset("val")


# --- on the device ---


def test_normalisation_is_exact():
    data = digits()
    images = torch.arange(0, 256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    out = data.normalise(images)
    expected = (images.double() / 255 - data.source.mean[0]) / data.source.std[0]
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), expected, atol=2e-6)
    assert images.dtype == torch.uint8  # untouched


def test_normalisation_takes_each_channel_by_its_own(images):
    data = LongTailDataModule("folder", str(images), profile="natural")
    batch = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    out = data.normalise(batch)
    for c in range(3):
        expected = (100 / 255 - data.source.mean[c]) / data.source.std[c]
        assert torch.allclose(out[:, c], torch.tensor(expected, dtype=torch.float32))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_is_for_training_only_and_leaves_the_rest_of_the_batch():
    data = digits(augment=[RandomCrop(2)])
    batch = next(iter(data.train_dataloader()))
    plain = data.normalise(batch["image"])
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], plain)  # no trainer
    data.trainer = trainer(training=False)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], plain)
    data.trainer = trainer()
    out = data.on_after_batch_transfer(batch, 0)
    assert not torch.equal(out["image"], plain)
    assert out["label"] is batch["label"]
    assert batch["image"].dtype == torch.uint8


def test_augmentation_is_a_function_of_seed_rank_and_step(monkeypatch):
    data = digits(augment=[RandomCrop(2), HorizontalFlip()])
    batch = next(iter(data.train_dataloader()))

    def augmented(rank=0, step=0, seed="0"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data.trainer = trainer(rank=rank, step=step)
        return data.on_after_batch_transfer(batch, 0)["image"]

    reference = augmented()
    augmented(step=5)  # what happened before does not matter
    torch.rand(3)
    assert torch.equal(augmented(), reference)
    for other in ({"rank": 1}, {"step": 1}, {"seed": "1"}):
        assert not torch.equal(augmented(**other), reference)


def test_transforms_are_applied_in_order():
    class Log:
        def __init__(self, name, log):
            self.name, self.log = name, log

        def __call__(self, images, generator):
            assert images.dtype == torch.uint8
            self.log.append((self.name, generator))
            return images

    log = []
    data = digits(augment=[Log("a", log), Log("b", log)])
    data.trainer = trainer()
    data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    (first, one), (second, other) = log
    assert (first, second) == ("a", "b")
    assert one is other
    expected = seeding.generator("cpu", 0, "augment", 0, 0)
    assert torch.equal(one.get_state(), expected.get_state())


# --- images that do not fit in memory, and images to predict ---


def of_folder(root, **options):
    data = LongTailDataModule("folder", str(root), profile="natural", batch_size=8, **options)
    data.setup()
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_in_workers_gives_the_batches_of_memory(workers, images, monkeypatch):
    held = of_folder(images)
    monkeypatch.setattr(files, "MEMORY_BUDGET", 0)
    lazy = of_folder(images, num_workers=workers)
    assert isinstance(held.dataset("train"), MemoryImages)
    assert isinstance(lazy.dataset("train"), DecodedImages)
    assert lazy.train_dataloader().num_workers == workers
    assert held.train_dataloader().num_workers == 0
    for name in ("train_dataloader", "test_dataloader"):
        pairs = zip(getattr(held, name)(), getattr(lazy, name)(), strict=True)
        for one, other in pairs:
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_small_sets_are_held_and_batched_on_the_device_of_training(images):
    data = digits(batch_size=8, eval_batch_size=4)
    assert data.dataset("train").images.device.type == "cpu"
    # Where no GPU is: tensors of this device have sizes alone, and refuse to meet those of another.
    data.trainer = trainer(device="meta")
    for loader in (data.train_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert {value.device.type for value in batch.values()} == {"meta"}
        assert len(batch["image"]) == len(batch["label"]) == len(batch["index"]) > 1


def test_one_row_is_a_batch_of_one(images):
    for dataset in (of_folder(images).dataset("train"), digits().dataset("test")):
        batch = dataset[3]
        assert batch["image"].shape[0] == 1
        assert batch["label"].shape == (1,)


def test_images_to_predict_have_the_size_and_channels_of_training(images, make_images, tmp_path):
    make_images(tmp_path / "new", {"x": 2, "y": 1}, size=40)
    data = of_folder(images, predict_folder=str(tmp_path / "new"))
    batch = batches_of(data.predict_dataloader())
    assert batch.keys() == {"image", "index"}
    assert batch["image"].shape == (3, 3, 12, 12)
    assert batch["index"].tolist() == [0, 1, 2]
    grey = digits(predict_folder=str(tmp_path / "new"))
    assert next(iter(grey.predict_dataloader()))["image"].shape == (3, 1, 8, 8)
    paths = data.images_to_predict().paths
    assert [p.relative_to(tmp_path / "new").as_posix() for p in paths] == [
        *("x/000.png", "x/001.png", "y/000.png"),
    ]


def test_no_folder_to_predict():
    with pytest.raises(UserError, match="predict_folder"):
        digits().predict_dataloader()


# --- where the data lies ---


def test_root_is_the_argument_else_the_environment_else_data(monkeypatch, tmp_path):
    assert LongTailDataModule("digits").root.as_posix() == "data"
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    assert LongTailDataModule("digits").root == tmp_path
    assert LongTailDataModule("digits", root="here").root.as_posix() == "here"


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_decoded_batches_of_a_gpu_are_pinned(device, pinned, images, monkeypatch):
    monkeypatch.setattr(DataModule, "device", torch.device(device))
    data = of_folder(images, predict_folder=str(images / "test"))
    data.source.in_memory = False
    data.setup()
    loaders = [data.train_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    assert [loader.pin_memory for loader in loaders] == [pinned] * 3

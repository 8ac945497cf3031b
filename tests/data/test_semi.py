"""The semi-supervised data module: batches, views, replacement, and labels that stay hidden."""

import numpy as np
import pytest
import torch
from data_support import trainer

from ltbench.data.protocols import NaturalProtocol, PaperProtocol, ReleasedProtocol
from ltbench.data.samplers import SideBySide, UniformSampler
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.sources.decoding import Decoding
from ltbench.data.transforms.basic import HorizontalFlip, RandomCrop
from ltbench.data.transforms.randaugment import RandAugment
from ltbench.errors import UserError


def digits(protocol=None, **options):
    protocol = protocol or ReleasedProtocol(40, 10, 60, 10, val_per_class=10)
    options = {"batch_size": 8, "mu": 3, "steps_per_epoch": 5} | options
    data = SemiSupervisedDataModule("digits", protocol=protocol, **options)
    data.setup()
    return data


def drawn_apart(images, sizes, steps, seed):
    samplers = [
        UniformSampler(np.zeros(n, int), seed, steps * size)
        for n, size in zip(images, sizes, strict=True)
    ]
    return SideBySide(samplers, sizes, seed)


def test_a_batch_has_labelled_and_unlabelled_images_of_their_splits():
    data = digits()
    loader = data.train_dataloader()
    assert len(loader) == 5
    batches = list(loader)
    assert len(batches) == 5
    labelled, unlabelled = data.splits["train"], data.splits["unlabelled"]
    for batch in batches:
        assert batch["image"].shape == (8, 1, 8, 8)
        assert batch["image"].dtype == torch.uint8
        assert np.isin(batch["index"], labelled.indices).all()
        assert np.array_equal(batch["label"], data.source.labels("train")[batch["index"]])
        assert torch.equal(batch["image"], data.source.images("train", batch["index"]))
        hidden = batch["unlabelled"]
        assert hidden["image"].shape == (24, 1, 8, 8)
        assert hidden["label"].tolist() == [-1] * 24
        places = unlabelled.indices[hidden["index"]]
        assert torch.equal(hidden["image"], data.source.images("train", places))


def test_draws_are_uniform_with_replacement():
    images, steps = (20, 50), 4000
    sampler = drawn_apart(images, (2, 5), steps, 0)
    rows = np.array(list(sampler)).reshape(steps, 7)
    assert len(sampler) == 7 * steps
    assert rows[:, :2].max() == 19
    assert (rows[:, 2:].min(), rows[:, 2:].max()) == (20, 69)
    for pool, size in ((rows[:, :2], 20), (rows[:, 2:] - 20, 50)):
        counts = np.bincount(pool.ravel(), minlength=size)
        chi2 = ((counts - pool.size / size) ** 2 / (pool.size / size)).sum()
        assert chi2 < size + 5 * np.sqrt(2 * size)
    assert (rows[:, 0] == rows[:, 1]).any()


def test_draws_are_a_function_of_seed_and_epoch():
    def rows(seed, epoch):
        sampler = drawn_apart((20, 50), (2, 5), 10, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert rows(0, 3) == rows(0, 3)
    assert len({tuple(rows(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_has_the_same_images_on_any_number_of_ranks(world, monkeypatch):
    images, draws, steps = (20, 50), (8, 24), 6
    alone = np.array(list(drawn_apart(images, draws, steps, 0))).reshape(steps, 32)
    shards = []
    for rank in range(world):
        monkeypatch.setattr("ltbench.data.samplers._world", lambda rank=rank: (world, rank))
        shard = np.array(list(drawn_apart(images, draws, steps, 0))).reshape(steps, 32 // world)
        labelled = shard < 20
        assert labelled[:, : 8 // world].all()
        assert labelled.sum() == steps * 8 // world
        shards.append(shard)
    assert np.array_equal(np.sort(np.concatenate(shards, 1)), np.sort(alone))


def test_views():
    data = digits(augment=[RandomCrop(1)], strong_augment=[RandAugment(3, None, "fixmatch")])
    batch = next(iter(data.train_dataloader()))
    data.trainer = trainer(step=7)
    out = data.on_after_batch_transfer(batch, 0)
    hidden = out["unlabelled"]
    assert hidden.keys() == {"weak", "strong", "index", "label"}
    assert torch.equal(hidden["index"], batch["unlabelled"]["index"])
    for view in (out["image"], hidden["weak"], hidden["strong"]):
        assert view.dtype == torch.float32
    plain = data.normalise(batch["unlabelled"]["image"])
    assert (hidden["weak"] != plain).any()
    assert not torch.equal(hidden["strong"], hidden["weak"])
    again = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(again["unlabelled"]["strong"], hidden["strong"])
    data.trainer = trainer(step=8)
    other = data.on_after_batch_transfer(batch, 0)
    assert not torch.equal(other["unlabelled"]["weak"], hidden["weak"])


def test_strong_views_take_the_strong_transforms_first_and_labelled_images_the_weak_ones():
    log = []

    def note(name):
        def transform(images, draws):
            log.append((name, len(images)))
            return images

        return transform

    data = digits(augment=[note("weak")], strong_augment=[note("strong")])
    batch = next(iter(data.train_dataloader()))
    data.trainer = trainer()
    data.on_after_batch_transfer(batch, 0)
    assert log == [("weak", 8), ("weak", 24), ("strong", 24), ("weak", 24)]


def test_labelled_views_do_not_depend_on_the_unlabelled_images():
    images = []
    for mu in (0, 1, 3):
        data = digits(mu=mu, augment=[RandomCrop(1), HorizontalFlip()])
        batch = next(iter(data.train_dataloader()))
        data.trainer = trainer(step=2)
        batch |= {"image": torch.arange(8 * 64, dtype=torch.uint8).view(8, 1, 8, 8)}
        out = data.on_after_batch_transfer(batch, 0)
        assert ("unlabelled" in out) == (mu > 0)
        images.append(out["image"])
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_evaluation_is_not_augmented_and_rows_of_the_unlabelled_split_are_in_order():
    data = digits(augment=[RandomCrop(3)], eval_batch_size=7)
    batches = list(data.evaluation_batches("unlabelled", torch.device("cpu")))
    index = torch.cat([batch["index"] for batch in batches])
    size = len(data.splits["unlabelled"].labels)
    assert index.tolist() == list(range(size))
    images = torch.cat([batch["image"] for batch in batches])
    places = data.splits["unlabelled"].indices
    assert torch.equal(images, data.normalise(data.source.images("train", places)))
    assert set(torch.cat([batch["label"] for batch in batches]).tolist()) == {-1}


def test_random_crops_of_files_are_others_in_each_view_and_epoch(images):
    def loader(epoch, workers=0):
        data = SemiSupervisedDataModule(
            "folder",
            str(images),
            NaturalProtocol(0.5, 0),
            decoding=Decoding(random_crop=(0.2, 0.6)),
            num_workers=workers,
            **{"batch_size": 4, "mu": 2, "steps_per_epoch": 3},
        )
        data.setup()
        found = data.train_dataloader()
        found.sampler.set_epoch(epoch)
        return found

    for batch, again, other in zip(loader(0), loader(0, 1), loader(1), strict=True):
        hidden = batch["unlabelled"]
        assert hidden["weak"].shape == hidden["strong"].shape == (8, 3, 12, 12)
        assert not torch.equal(hidden["weak"], hidden["strong"])
        assert hidden["index"].max() < 16
        assert torch.equal(hidden["strong"], again["unlabelled"]["strong"])
        assert torch.equal(batch["image"], again["image"])
        assert not torch.equal(batch["image"], other["image"])
    data = digits()
    batch = next(iter(data.train_dataloader()))
    data.trainer = trainer()
    weak, strong = torch.zeros(2, 24, 1, 8, 8, dtype=torch.uint8).unbind()
    batch["unlabelled"] |= {"weak": weak, "strong": strong + 9}
    views = data.on_after_batch_transfer(batch, 0)["unlabelled"]
    assert torch.equal(views["weak"], data.normalise(weak))
    assert torch.equal(views["strong"], data.normalise(strong + 9))


# --- hidden labels ---


def test_labels_are_opened_by_the_oracle_alone():
    data = digits()
    with pytest.raises(UserError, match=r"data\.oracle"):
        data.oracle_labels()
    data = digits(oracle=True)
    truth = data.oracle_labels()
    assert np.array_equal(truth, data.source.labels("train")[data.splits["unlabelled"].indices])
    assert data.splits["unlabelled"].labels.tolist() == [-1] * len(truth)
    assert next(iter(data.train_dataloader()))["unlabelled"]["label"].max() == -1


def test_an_oracle_that_does_not_know(images, make_images):
    make_images(images / "unlabelled", {"x": 3, "y": 2})
    data = SemiSupervisedDataModule(
        "folder", str(images), NaturalProtocol(labelled=None, val=0), oracle=True
    )
    data.setup()
    assert data.describe()["images"] == {"train": 32, "unlabelled": 5, "test": 13}
    assert data.describe()["unlabelled_counts"] is None
    with pytest.raises(UserError, match="unlabelled"):
        data.oracle_labels()


def test_a_share_of_a_folder(images):
    data = SemiSupervisedDataModule("folder", str(images), NaturalProtocol(0.3, 0))
    data.setup()
    assert data.class_counts.tolist() == [6, 3, 1]
    assert data.describe()["unlabelled_counts"] == [14, 6, 2]


# --- what a record says ---


def test_describe():
    facts = digits().describe()
    assert facts["profile"].startswith("ReleasedProtocol(n1=40, rho_l=10, m1=60")
    assert facts["class_counts"][0] == 40
    assert facts["unlabelled_counts"][0] == 60
    assert facts["imbalance_factor"] == 10
    assert facts["images"]["unlabelled"] == sum(facts["unlabelled_counts"])
    assert facts["oracle"] is False


def test_the_hash_names_labelled_and_unlabelled_images():
    reference = digits().index_hash
    assert digits(mu=1, oracle=True, steps_per_epoch=9).index_hash == reference
    assert digits(ReleasedProtocol(40, 10, 60, 10, 11)).index_hash == reference
    for protocol in (ReleasedProtocol(40, 10, 61, 10, 10), ReleasedProtocol(41, 10, 60, 10, 10)):
        assert digits(protocol).index_hash != reference
    assert digits(subset_seed=1).index_hash != reference


def test_the_papers_protocol_tests_on_the_other_half():
    data = digits(PaperProtocol(100, 10, 4))
    assert data.describe()["images"]["val"] == data.describe()["images"]["test"] == 200
    val, test = (
        torch.cat([batch["index"] for batch in loader])
        for loader in (*data.val_dataloader(), data.evaluation_dataloader("test"))
    )
    assert not set(val.tolist()) & set(test.tolist())


@pytest.mark.parametrize("options", [{"mu": -1}, {"steps_per_epoch": 0}, {"batch_size": 0}])
def test_sizes_out_of_range(options):
    with pytest.raises(UserError, match="at least"):
        digits(**options)


def test_a_batch_that_the_ranks_do_not_divide():
    data = digits(batch_size=8)
    data.trainer = trainer(world=3)
    with pytest.raises(UserError, match="batch_size"):
        data.train_dataloader()

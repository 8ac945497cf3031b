"""A data set of the torchvision kind, cut to a long tail."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ltbench.data import LongTailDataModule, long_tailed
from ltbench.errors import UserError


class FakeCifar(torch.utils.data.Dataset):
    """Images that are their number, in a shuffled order of ten classes."""

    def __init__(self, size=1000, classes=10):
        self.targets = np.random.default_rng(0).permutation(np.arange(size) % classes).tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor(index), self.targets[index]


def test_a_data_set_is_cut_to_the_profile():
    whole = FakeCifar()
    cut = long_tailed(whole, 10)
    assert cut.class_counts == [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]
    assert len(cut) == len(cut.targets) == sum(cut.class_counts)
    assert cut.targets == [whole.targets[index] for index in cut.indices]
    image, label = cut[3]
    assert (int(image), label) == (cut.indices[3], cut.targets[3])
    batches = list(DataLoader(cut, batch_size=50))
    assert sum(len(labels) for _, labels in batches) == len(cut)
    assert len(whole) == 1000


def test_the_seed_chooses_the_images_and_nothing_global_does():
    whole = FakeCifar()
    torch.manual_seed(3)
    assert long_tailed(whole, 10).indices == long_tailed(whole, 10).indices
    assert long_tailed(whole, 10, seed=1).indices != long_tailed(whole, 10).indices
    assert long_tailed(whole, 10, seed=1).class_counts == long_tailed(whole, 10).class_counts


def test_the_images_are_those_of_a_run(monkeypatch):
    whole = FakeCifar()
    source = SimpleNamespace(
        num_classes=10, labels=lambda split: np.array(whole.targets), has=lambda split: False
    )
    data = LongTailDataModule("digits", imbalance_factor=20, val_fraction=0)
    splits = data.partition.split(source, 0)
    assert splits["train"].indices.tolist() == long_tailed(whole, 20).indices


def test_labels_may_be_given_and_profiles_chosen():
    whole = FakeCifar()
    labels, whole.targets = torch.tensor(whole.targets), [0] * 1000
    cut = long_tailed(whole, 5, labels=labels, largest=50, profile="step")
    assert cut.class_counts == [50] * 5 + [10] * 5


@pytest.mark.parametrize(
    ("labels", "told"),
    [(None, "labels="), ([0, 1], "shape"), (np.full(8, 0.5), "float64")],
)
def test_labels_that_cannot_be_used(labels, told):
    with pytest.raises(UserError, match=told):
        long_tailed(range(8), 10, labels=labels)


@pytest.mark.parametrize("options", [{"imbalance_factor": 0.5}, {"imbalance_factor": 1000}])
def test_an_imbalance_that_cannot_be_had(options):
    with pytest.raises(UserError, match="imbalance factor"):
        long_tailed(FakeCifar(), **options)

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from ltbench.data.datasets import CroppedImages, as_is
from ltbench.data.samplers import ImagesByClass
from ltbench.data.sources.decoding import Decoding
from ltbench.data.sources.folder import Folder
from ltbench.data.splits import Split
from ltbench.data.streams import MAIN, StreamImages
from ltbench.errors import UserError
from ltbench.methods.selmix.pairs import PairSampler

LABELS = np.array([2, 0, 0, 1, 2, 0, 0, 0])
PSEUDO = torch.tensor([1, 1, 0, 1, 2, 1])
SHARES = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.0, 0.3], [0.25, 0.0, 0.15]], dtype=torch.float64)


def sampler(length=4000, seed=0):
    found = PairSampler(LABELS, 3, length, seed)
    found.draw_from(SHARES, PSEUDO)
    return found


def pairs(found):
    """The pairs of an epoch, the second row counted in the images that it is from."""
    return torch.tensor(list(found)).view(-1, 2) - torch.tensor([0, len(LABELS)])


def test_pairs_follow_their_shares():
    rows = pairs(sampler(20_000))
    classes = torch.from_numpy(LABELS)[rows[:, 0]] * 3 + PSEUDO[rows[:, 1]]
    counts = torch.bincount(classes, minlength=9)
    expected = 20_000 * SHARES.flatten()
    assert (counts[expected == 0] == 0).all()
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3
    # Within a class every image is as likely.
    of_head = torch.bincount(rows[:, 0], minlength=8)[torch.from_numpy(LABELS) == 0]
    assert chisquare(of_head).pvalue > 1e-3


def test_an_epoch_is_a_function_of_seed_and_epoch():
    one, other = sampler(), sampler()
    first = list(one)
    assert first == list(other) == list(one)
    one.set_epoch(1)
    assert list(one) != first
    assert list(sampler(seed=1)) != first
    # Other shares and pseudo-labels count from the next epoch on.
    one.set_epoch(0)
    one.draw_from(torch.eye(3).double() / 3, PSEUDO.flip(0))
    rows = pairs(one)
    assert (torch.from_numpy(LABELS)[rows[:, 0]] == PSEUDO.flip(0)[rows[:, 1]]).all()


def test_ranks_share_one_draw():
    whole = pairs(sampler(120))
    shards = []
    for rank in range(3):
        shard = sampler(120)
        shard.rank, shard.num_replicas, shard.num_samples = rank, 3, 80
        shards.append(pairs(shard))
    assert torch.equal(torch.stack(shards, 1).view(-1, 2), whole)


def test_only_the_last_pair_with_a_share_ends_the_bounds():
    found = PairSampler(LABELS, 3, 50, 0)
    found.draw_from(torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]).double(), PSEUDO)
    rows = pairs(found)
    assert (rows[:, 1] == 2).all()


def test_pairs_need_shares():
    with pytest.raises(UserError, match="draw_from"):
        list(PairSampler(LABELS, 3, 50, 0))


def test_images_by_class_draws_with_replacement():
    images = ImagesByClass(PSEUDO, 4)
    assert images.counts.tolist() == [1, 4, 1, 0]
    drawn = images.draw(torch.tensor([1] * 500 + [2]), torch.Generator().manual_seed(0))
    assert set(drawn[:-1].tolist()) == {0, 1, 3, 5}
    assert int(drawn[-1]) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_pairs_have_random_crops_of_their_own(tmp_path, make_images, workers):
    make_images(tmp_path / "train", {"ant": 6, "bee": 3}, size=20)
    source = Folder(tmp_path, 8, decoding=Decoding(random_crop=(0.2, 0.5)))
    labels = source.labels("train")
    images = CroppedImages(source, Split("train", np.arange(9), labels), seed=0)
    drawn = PairSampler(labels, 2, 12, 0)
    drawn.numbered = True
    drawn.draw_from(torch.full((2, 2), 0.25).double(), torch.from_numpy(labels))
    loader = DataLoader(
        StreamImages({MAIN: images, "partner": images}),
        batch_size=12,
        sampler=drawn,
        collate_fn=as_is,
        num_workers=workers,
    )
    once, again = [list(loader) for _ in range(2)]
    for one, other in zip(once, again, strict=True):
        assert one["image"].shape == one["partner"]["image"].shape == (6, 3, 8, 8)
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["partner"]["image"], other["partner"]["image"])
    # An image that comes twice comes with two crops.
    seen = {}
    for part in (part for batch in once for part in (batch, batch["partner"])):
        for index, image in zip(part["index"].tolist(), part["image"], strict=True):
            assert not any(torch.equal(image, before) for before in seen.get(index, []))
            seen.setdefault(index, []).append(image)
    assert max(map(len, seen.values())) > 1

"""Mixup and CutMix: what comes out agrees with the targets, and draws come from the seed alone."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltbench.errors import UserError
from ltbench.methods.deit_lt.mixing import PairMixing


def numbered(batch, size=16):
    """Images filled with their own number."""
    return torch.arange(batch).float().view(-1, 1, 1, 1).expand(batch, 1, size, size).clone()


@pytest.mark.paper
def test_the_mixed_target_of_the_paper():
    mixing = PairMixing(10, mixup=0.8, cutmix=0, smoothing=0.1)
    with mock.patch.object(np.random, "beta", return_value=0.7):
        first, last = mixing(numbered(2), torch.tensor([1, 2]), seed=0)
    expected = torch.full((10,), 0.01)
    expected[[1, 2]] = torch.tensor([0.64, 0.28])
    torch.testing.assert_close(first, expected)
    expected[[1, 2]] = torch.tensor([0.28, 0.64])
    torch.testing.assert_close(last, expected)


@given(st.integers(0, 2**40), st.integers(1, 9), st.sampled_from([(0.8, 0), (0, 1.0), (0.8, 1.0)]))
def test_targets_say_what_is_in_the_image(seed, batch, alphas):
    images, labels = numbered(batch), torch.arange(batch)
    targets = PairMixing(batch, *alphas, smoothing=0)(images, labels, seed)
    torch.testing.assert_close(targets.sum(1), torch.ones(batch))
    # The mean pixel is the expectation of the image's number under the target.
    torch.testing.assert_close(images.mean((1, 2, 3)), targets @ labels.float())
    for number, image in enumerate(images[: batch // 2 * 2]):
        partner = batch // 2 * 2 - 1 - number
        values = image.unique()
        low, high = sorted((number, partner))
        assert ((values >= low - 1e-4) & (values <= high + 1e-4)).all()
    if batch % 2:
        assert targets[-1].argmax() == batch - 1
        assert (images[-1] == batch - 1).all()


def test_mixup_and_cutmix_come_equally_often_with_their_own_lambda():
    mixing, boxes, shares = PairMixing(2, 0.8, 1.0, 0.0), [], []
    for seed in range(600):
        images = numbered(2)
        targets = mixing(images, torch.tensor([0, 1]), seed)
        boxes.append(len(images[0].unique()) == 2)
        if not boxes[-1]:
            shares.append(targets[0, 0].item())
    assert np.mean(boxes) == pytest.approx(0.5, abs=0.08)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)  # Beta(0.8, 0.8)


def test_without_mixing_targets_are_smoothed_labels():
    images = numbered(3)
    targets = PairMixing(4, 0, 0, 0.2)(images, torch.tensor([0, 3, 3]), 0)
    assert torch.equal(images, numbered(3))
    expected = torch.full((3, 4), 0.05)
    expected[[0, 1, 2], [0, 3, 3]] = 0.85
    torch.testing.assert_close(targets, expected)


def test_draws_come_from_the_seed_and_leave_numpy_alone():
    mixing, labels = PairMixing(8, 0.8, 1.0, 0.1), torch.arange(8)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    first, again = (mixing(numbered(8), labels, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, mixing(numbered(8), labels, 4))
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("wrong", [(-1, 0, 0), (0, -1, 0), (0, 0, 1.5)])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="smoothing"):
        PairMixing(10, *wrong)

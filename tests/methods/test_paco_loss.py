"""PaCo's loss and queue: against slow ones and the paper's numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from paco_digits import slow_loss

from ltbench.methods.paco import KeyQueue, paco_loss


@pytest.mark.paper
@pytest.mark.parametrize(("positives", "expected"), [(0, 2.302585), (1, 2.269578), (2, 2.239572)])
def test_the_loss_of_an_anchor_that_knows_nothing(positives, expected):
    """arXiv 2107.12028: two classes of equal priors, four contrasted samples, all logits 0."""
    prior = torch.tensor([[0.5, 0.5]]).log()
    positive = torch.arange(4)[None] < positives
    loss = paco_loss(prior, torch.zeros(1, 4), torch.tensor([0]), positive, alpha=0.05)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 9), st.integers(0, 99), st.floats(0, 1))
def test_the_loss_is_the_slow_one(anchors, classes, samples, seed, alpha):
    draw = np.random.default_rng(seed)
    class_logits = draw.normal(0, 3, (anchors, classes))
    similarities = draw.normal(0, 3, (anchors, samples))
    left_out = draw.random((anchors, samples)) < 0.2
    similarities[left_out] = -np.inf
    targets = draw.integers(0, classes, anchors)
    positive = (draw.random((anchors, samples)) < 0.3) & ~left_out
    arguments = [torch.from_numpy(x) for x in (class_logits, similarities, targets, positive)]
    expected = slow_loss(class_logits, similarities, targets, positive, alpha, 0.7)
    assert float(paco_loss(*arguments, alpha, 0.7)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_samples_the_loss_is_balanced_softmax():
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    nothing = torch.full((6, 3), -torch.inf), targets, torch.zeros(6, 3, dtype=torch.bool)
    assert torch.allclose(paco_loss(logits, *nothing), F.cross_entropy(logits, targets))


def test_gradients_are_finite_where_samples_are_left_out():
    logits = torch.randn(3, 2, requires_grad=True)
    raw = torch.randn(3, 4, requires_grad=True)
    left_out = torch.eye(3, 4, dtype=torch.bool)
    positive = torch.tensor([[0, 1, 0, 1]] * 3, dtype=torch.bool) & ~left_out
    paco_loss(
        logits, raw.masked_fill(left_out, -torch.inf), torch.tensor([0, 1, 1]), positive
    ).backward()
    assert logits.grad.isfinite().all()
    assert raw.grad.isfinite().all()
    assert (raw.grad[left_out] == 0).all()
    assert (raw.grad[~left_out] != 0).all()


@given(st.integers(1, 7), st.lists(st.integers(1, 9), max_size=6))
def test_the_queue_holds_the_last_keys(length, sizes):
    queue, pushed = KeyQueue(length, 1), []
    assert queue.labels.tolist() == [-1] * length
    for size in sizes:
        labels = torch.arange(len(pushed), len(pushed) + size)
        queue.push(labels[:, None].float(), labels)
        pushed += labels.tolist()
    held = [label for label in queue.labels.tolist() if label >= 0]
    assert sorted(held) == pushed[-length:]
    filled = queue.labels >= 0
    assert torch.equal(queue.keys[filled, 0].long(), queue.labels[filled])

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.methods.cbgan.balance import (
    ClassBalance,
    balance_loss,
    balance_weights,
    updated_frequency,
)

COUNTS = [(900, 80, 20), (800, 150, 50), (700, 200, 100)]
TILTED = torch.tensor([0.518199, 1.180072, 1.301729])


def close(actual, expected, tol=1e-6):
    assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), atol=tol, rtol=0)


def predictions(counts):
    """Logits whose predicted classes have these counts."""
    return (
        5
        * torch.eye(len(counts))[torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))]
    )


def run(balance, batches):
    """Frequencies and weights after each update."""
    history = []
    for counts in batches:
        balance(predictions(counts))
        balance.update()
        history.append((balance.frequency.clone(), balance.weights.clone()))
    return history


@pytest.mark.paper
def test_frequencies_and_weights_from_the_official_start():
    history = run(ClassBalance(3), COUNTS)
    frequencies = [(731, 321, 291), (765.5, 235.5, 170.5), (732.75, 217.75, 135.25)]
    weights = [
        (0.518199, 1.180072, 1.301729),
        (0.343239, 1.115709, 1.541052),
        (0.306659, 1.031939, 1.661402),
    ]
    for (frequency, weight), n, w in zip(history, frequencies, weights, strict=True):
        close(frequency, n)
        close(weight, w)


@pytest.mark.paper
def test_frequencies_and_weights_without_pending_counts():
    history = run(ClassBalance(3, pending=0), COUNTS)
    for (frequency, _), n in zip(
        history, [(475, 65, 35), (637.5, 107.5, 42.5), (668.75, 153.75, 71.25)], strict=True
    ):
        close(frequency, n)
    close(history[0][1], (0.137117, 1.002009, 1.860874))


@pytest.mark.paper
def test_a_frequency_is_at_least_one():
    history = run(ClassBalance(3, pending=0), [(1000, 0, 0)] * 8)
    close(history[4][0][1], 1.5625)
    assert all(float(frequency[1]) == 1 for frequency, _ in history[5:])
    close(history[5][1], (0.001522, 1.499239, 1.499239))


@pytest.mark.paper
def test_slow_forgetting_of_the_inat_runs():
    history = run(ClassBalance(3, forgetting=0.005), [(256, 0, 0)] * 3)
    for (frequency, _), n in zip(
        history,
        [(53.59, 52.31, 52.31), (54.60205, 52.04845, 52.04845), (55.60904, 51.78821, 51.78821)],
        strict=True,
    ):
        close(frequency, n, tol=1e-5)


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=50), st.floats(1e-3, 1e3, allow_nan=False))
def test_weights_sum_to_the_classes_whatever_the_scale(frequency, scale):
    frequency = torch.tensor(frequency, dtype=torch.float64)
    weights = balance_weights(frequency)
    assert_close(weights.sum().item(), float(len(frequency)))
    assert_close(balance_weights(scale * frequency), weights)
    close(balance_weights(torch.full_like(frequency, scale)), [1.0] * len(frequency))
    assert (weights.argsort(stable=True) == (-frequency).argsort(stable=True)).all()


@given(st.floats(0.01, 1), st.lists(st.integers(0, 1000), min_size=1, max_size=9))
def test_an_update_against_plain_arithmetic(forgetting, counts):
    start = [50 + k for k in range(len(counts))]
    found = updated_frequency(
        torch.tensor(start, dtype=torch.float64),
        torch.tensor(counts, dtype=torch.float64),
        forgetting,
    )
    expected = [
        max(1, (1 - forgetting) * n + forgetting * h) for n, h in zip(start, counts, strict=True)
    ]
    close(found, expected, tol=1e-9)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("weights", "loss", "gradient"),
    [
        ((1.0, 1, 1), -0.801819, (0.643325, -0.609438, -1.302585)),
        ((0.1, 0.9, 2), -0.775183, (0.064333, -0.548494, -2.605170)),
    ],
)
def test_the_loss_and_its_gradient(weights, loss, gradient):
    p = torch.tensor([0.7, 0.2, 0.1], requires_grad=True)
    found = balance_loss(p, torch.tensor(weights))
    found.backward()
    close(found, loss)
    close(p.grad, gradient)


@pytest.mark.paper
def test_the_loss_of_a_balanced_batch():
    p = torch.full((10,), 0.1, requires_grad=True)
    found = balance_loss(p, torch.ones(10))
    found.backward()
    close(found, -2.302585)
    assert_close(p.grad, p.grad[:1].expand(10))
    # The mean over the batch comes first: each image may be of one class.
    rows = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    close(ClassBalance(3)(rows.log()), -1.098612)


@pytest.mark.paper
def test_the_gradient_at_the_logits():
    balance = ClassBalance(3)
    balance.weights.copy_(TILTED)
    logits = torch.tensor([[2.0, 0, 0], [2, 1, -1]], requires_grad=True)
    loss = balance(logits)
    loss.backward()
    close(loss, -0.724023)
    close(logits.grad, [(0.155143, -0.042401, -0.112742), (0.140061, -0.102937, -0.037125)])
    # (1/B) p_ic (g_c - sum_k g_k p_ik) with g_k = w_k (1 + ln p_k)
    p = logits.detach().softmax(1)
    g = TILTED * (1 + p.mean(0).log())
    assert_close(logits.grad, p * (g - p @ g[:, None]) / 2)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("weights", "expected", "loss"),
    [
        (torch.ones(3), (1 / 3,) * 3, -1.098612),
        (TILTED, (0.312661, 0.342523, 0.344816), -1.099357),
    ],
)
def test_the_balanced_distribution_minimises_the_loss(weights, expected, loss):
    def value(logits):
        p = torch.tensor(logits).softmax(0)
        return float(balance_loss(p, weights.double()))

    found = minimize(value, [0.3, 0.0, -0.2], tol=1e-12)
    close(torch.tensor(found.fun), loss)
    close(torch.tensor(found.x).softmax(0), expected, tol=1e-4)


def test_a_collapsed_generator_keeps_everything_finite():
    balance = ClassBalance(4, pending=0)
    logits = torch.tensor([[1e4, -1e4, -1e4, -1e4]] * 8, requires_grad=True)
    for _ in range(30):
        loss = balance(logits)
        loss.backward()
        balance.update()
    assert loss == 0
    assert logits.grad.isfinite().all()
    assert balance.weights.isfinite().all()
    close(balance.weights.sum(), 4.0)


def test_of_two_classes_neither_is_favoured():
    balance = ClassBalance(2)
    run(balance, [(1000, 10)] * 3)
    assert balance.frequency[0] > balance.frequency[1]
    close(balance.weights, (1.0, 1.0))


def test_gradients_stop_at_the_state():
    balance = ClassBalance(3)
    balance(torch.randn(4, 3, requires_grad=True))
    assert not any(buffer.requires_grad for buffer in balance.buffers())
    assert not list(balance.parameters())


def test_the_state_is_in_the_checkpoint():
    balance, other = ClassBalance(3), ClassBalance(3)
    run(balance, COUNTS)
    balance(predictions((1, 2, 3)))
    other.load_state_dict(balance.state_dict())
    run(balance, COUNTS)
    run(other, COUNTS)
    for ours, theirs in zip(balance.buffers(), other.buffers(), strict=True):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("wrong", [{"forgetting": 0}, {"forgetting": 2}, {"start": 0.5}])
def test_constants_out_of_range(wrong):
    with pytest.raises(UserError, match=r"balance\."):
        ClassBalance(3, **wrong)


def _on_each_rank(rank, world, port, images, folder):
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    dist.init_process_group("gloo", rank=rank, world_size=world)
    net = linear()
    balance = ClassBalance(5, pending=0)
    balance.weights.copy_(torch.tensor([0.2, 0.5, 1, 1.3, 2]))
    loss = balance(net(images[rank::world]))
    loss.backward()
    dist.all_reduce(net.weight.grad)
    torch.save((loss.detach(), net.weight.grad / world, balance.counts), folder / f"{rank}.pt")
    dist.destroy_process_group()


def linear():
    torch.manual_seed(1)
    return torch.nn.Linear(6, 5)


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_have_the_loss_the_gradient_and_the_counts_of_one(tmp_path):
    images = 3 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    net, balance = linear(), ClassBalance(5, pending=0)
    balance.weights.copy_(torch.tensor([0.2, 0.5, 1, 1.3, 2]))
    alone = balance(net(images))
    alone.backward()
    mp.start_processes(_on_each_rank, (2, 29533, images, tmp_path), nprocs=2, start_method="spawn")
    for rank in range(2):
        loss, gradient, counts = torch.load(tmp_path / f"{rank}.pt")
        assert_close(loss, alone.detach())
        assert_close(gradient, net.weight.grad)
        assert torch.equal(counts, balance.counts)
    local = ClassBalance(5)(net(images[::2])).detach()
    assert not math.isclose(float(local), float(alone.detach()), rel_tol=1e-3)

"""Gradients averaged in buckets equal those averaged one by one, bit for bit."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from ltbench.optim import reduction
from ltbench.optim.reduction import average_gradients, buckets


def network():
    """Weights of several sizes and layouts, of which one has no gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(16, 5)
    )
    net.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    return net.to(memory_format=torch.channels_last)


def backward(net, rank):
    images = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(rank))
    net.zero_grad()
    net(images.to(memory_format=torch.channels_last)).square().sum().backward()


def test_each_gradient_is_averaged_once_in_few_messages(monkeypatch):
    net, messages = network(), []
    backward(net, 0)
    before = [(p.grad.clone(), p.grad.stride()) for p in net.parameters() if p.grad is not None]
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: messages.append(len(flat)) or flat.mul_(2))
    average_gradients(net.parameters())
    assert messages == [sum(gradient.numel() for gradient, _ in before)]
    after = [p.grad for p in net.parameters() if p.grad is not None]
    for (gradient, stride), averaged in zip(before, after, strict=True):
        assert torch.equal(gradient, averaged)
        assert averaged.stride() == stride
    assert net.unused.grad is None


def test_buckets_hold_all_in_order_and_no_more_than_their_size():
    tensors = [torch.zeros(n) for n in (2, 3, 10, 1, 4)]
    found = [*buckets(tensors, size=20)]
    assert [len(tensor) for bucket in found for tensor in bucket] == [2, 3, 10, 1, 4]
    assert [len(bucket) for bucket in found] == [2, 1, 2]
    assert [*buckets([], 20)] == []
    mixed = [torch.zeros(1), torch.zeros(1, dtype=torch.double), torch.zeros(1)]
    assert [len(bucket) for bucket in buckets(mixed, 100)] == [1, 1, 1]


def one_rank(rank, folder, size):
    reduction.BUCKET = size
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net = network()
    backward(net, rank)
    alone = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    for gradient in alone:  # as it was done before
        dist.all_reduce(gradient)
        gradient /= 2
    average_gradients(net.parameters())
    together = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(map(torch.equal, alone, together))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("size", [100, 2**20])
def test_two_processes_agree_bit_for_bit(size, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    spawn(one_rank, (str(tmp_path), size), nprocs=2)

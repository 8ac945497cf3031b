"""Networks, steps and gradients that the tests of gradient rules share."""

import torch
import torch.nn.functional as F
from torch import nn

from ltbench.optim.step import Step


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def step_of(module, loss_of, batch_size=8, epoch=0, epochs=100, **options):
    options.setdefault("generator", generator())
    batch = torch.arange(batch_size)
    return Step(module, loss_of, batch, batch_size, epoch, epochs, **options)


def run(rule, *args, **options):
    return rule.backward(step_of(*args, **options))


class Net(nn.Module):
    """Convolution, batch norm, dropout and a linear layer, for 8 fixed images of 3 classes."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.dropout = dropout
        self.fc = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.5 * draw(*p.shape, seed=i))
        self.images = draw(8, 2, 6, 6, seed=77)
        self.targets = torch.arange(8) % 3

    def loss_of(self, part=slice(None)):
        x = F.relu(self.bn(self.conv(self.images[part]))).mean((2, 3))
        x = F.dropout(x, self.dropout) if self.dropout else x
        return F.cross_entropy(self.fc(x).float(), self.targets[part])

    def buffers_now(self):
        return {name: b.clone() for name, b in self.named_buffers()}

    def used(self):
        return [p for name, p in self.named_parameters() if not name.startswith("unused")]


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def gradients(module):
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_same(left, right):
    assert len(left) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))

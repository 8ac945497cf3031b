"""LPF-SGD and PGD: the noise that they add, and the gradient that is left."""

import pytest
import torch
import torch.nn.functional as F
from rule_cases import Net, assert_same, draw, flat, generator, gradients, run
from torch import nn

from ltbench.optim.sam import (
    LPFSGD,
    PGD,
    SAM,
    Plain,
    add_filter_noise,
)


@pytest.mark.parametrize("rule", [SAM(0.0), LPFSGD(0.0), PGD(0.0)])
def test_nothing_added_is_plain_training(rule):
    plain, other = Net(), Net()
    assert torch.equal(
        run(Plain(), plain, plain.loss_of, batch_size=8),
        run(rule, other, other.loss_of, batch_size=8),
    )
    assert_same(gradients(plain), gradients(other))


def test_parts_without_noise_give_the_gradient_of_the_batch():
    """Uneven parts of 8 images: 2, 3, 3. Batch norm would see each part alone, so it is off."""
    plain, parts = Net().eval(), Net().eval()
    loss = run(Plain(), plain, plain.loss_of, batch_size=8)
    torch.testing.assert_close(run(LPFSGD(0.0, parts=3), parts, parts.loss_of, 8), loss)
    torch.testing.assert_close(flat(gradients(parts)), flat(gradients(plain)))


def test_parts_see_every_sample_once_and_their_own_noise():
    net = Net()
    seen, weights = [], []

    def loss_of(part):
        seen.extend(part.tolist())
        weights.append(flat(net.parameters()))
        return net.loss_of(part)

    run(LPFSGD(0.1, parts=3), net, loss_of, batch_size=8)
    assert seen == list(range(8))
    assert not torch.equal(weights[0], weights[1])
    run(LPFSGD(0.1, parts=30), net, loss_of, batch_size=8)
    assert len(weights) == 3 + 8


@pytest.mark.paper
def test_filter_noise_has_the_scale_of_each_filter():
    sizes = torch.tensor([0.0, 0.5, 4.0])
    conv = nn.Parameter(F.normalize(draw(3, 20_000), dim=1).mul(sizes[:, None]).view(3, 8, 50, 50))
    bias = nn.Parameter(draw(20_000, seed=1))
    scalar = nn.Parameter(torch.tensor(2.0))
    before = [p.detach().clone() for p in (conv, bias, scalar)]
    add_filter_noise([conv, bias, scalar], 0.01, generator())
    noise = [(p.detach() - b) for p, b in zip((conv, bias, scalar), before, strict=True)]
    torch.testing.assert_close(noise[0].flatten(1).std(1), 0.01 * sizes, rtol=0.03, atol=0)
    torch.testing.assert_close(noise[1].std(), 0.01 * before[1].norm(), rtol=0.03, atol=0)
    assert noise[0].mean().abs() < 4 * 0.04 / 60_000**0.5
    assert 0 < noise[2].abs() < 0.02 * 5


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (50, 8.0), (100, 15.0)])
def test_filter_noise_grows_along_half_a_cosine(epoch, expected):
    net = Net()
    rule = LPFSGD(5e-4, growth=15)
    run(rule, net, net.loss_of, batch_size=8, epoch=epoch)
    assert rule.diagnostics["sigma"] == pytest.approx(5e-4 * expected)


def test_gradient_noise_has_its_standard_deviation():
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(40_000))
    run(PGD(0.25), module, lambda part: 3 * module.w.sum())
    assert module.w.grad.mean() == pytest.approx(3, abs=4 * 0.25 / 200)
    assert module.w.grad.std() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("rule", [LPFSGD(0.1), PGD(0.1)])
def test_noise_comes_from_the_given_generator_alone(rule):
    net, found = Net(), []
    state = torch.get_rng_state()
    for seed in (5, 5, 6):
        run(rule, net, net.loss_of, batch_size=8, generator=generator(seed))
        found.append(flat(gradients(net)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)

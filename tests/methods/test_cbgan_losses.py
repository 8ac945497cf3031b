import math

import pytest
import torch
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.methods.cbgan.losses import GAN_LOSSES, gan_loss

REAL, FAKE = torch.tensor([1, 0.5, -1]), torch.tensor([-1, 0, 2.0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.paper
def test_relativistic_loss():
    loss = gan_loss("relativistic")
    assert_close(loss.discriminator(REAL, FAKE).item(), 1.216531, atol=1e-6, rtol=0)
    assert_close(loss.generator(REAL, FAKE).item(), 1.049864, atol=1e-6, rtol=0)
    for player in (loss.discriminator, loss.generator):
        assert_close(player(FAKE, FAKE).item(), math.log(2), atol=1e-6, rtol=0)


def slow(name, real, fake):
    """The losses of both players, written out score by score."""
    mean_real, mean_fake, n = sum(real) / len(real), sum(fake) / len(fake), len(real)
    if name == "relativistic":
        pairs = list(zip(real, fake, strict=True))
        return (
            -sum(math.log(sigmoid(r - f)) for r, f in pairs) / n,
            -sum(math.log(sigmoid(f - r)) for r, f in pairs) / n,
        )
    if name == "relativistic_average":
        return (
            -sum(math.log(sigmoid(r - mean_fake)) for r in real) / n
            - sum(math.log(1 - sigmoid(f - mean_real)) for f in fake) / n,
            -sum(math.log(sigmoid(f - mean_real)) for f in fake) / n
            - sum(math.log(1 - sigmoid(r - mean_fake)) for r in real) / n,
        )
    if name == "hinge":
        return (
            sum(max(0, 1 - r) for r in real) / n + sum(max(0, 1 + f) for f in fake) / n,
            -mean_fake,
        )
    return (
        -sum(math.log(sigmoid(r)) for r in real) / n
        - sum(math.log(1 - sigmoid(f)) for f in fake) / n,
        -sum(math.log(sigmoid(f)) for f in fake) / n,
    )


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_both_players_against_a_slow_loop(name):
    loss = gan_loss(name)
    both = loss.discriminator(REAL, FAKE), loss.generator(REAL, FAKE)
    for found, expected in zip(both, slow(name, REAL.tolist(), FAKE.tolist()), strict=True):
        assert_close(found.item(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_the_generator_needs_real_scores_only_where_it_says_so(name):
    real = REAL.clone().requires_grad_()
    fake = FAKE.clone().requires_grad_()
    loss = gan_loss(name)
    loss.generator(real, fake).backward()
    assert (real.grad is not None and bool(real.grad.any())) == loss.relativistic
    assert (fake.grad <= 0).all()  # descent raises the scores of generated images


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_half_precision_scores_give_a_finite_float32_loss(name):
    loss = gan_loss(name)
    real, fake = (REAL * 1e4).bfloat16(), (FAKE * 1e4).bfloat16()
    for player in (loss.discriminator, loss.generator):
        found = player(real, fake)
        assert found.dtype == torch.float32
        assert found.isfinite()


def test_a_wrong_name_names_the_nearest():
    with pytest.raises(UserError, match="hinge"):
        gan_loss("hing")

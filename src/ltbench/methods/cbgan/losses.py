"""Adversarial losses: what a discriminator and a generator minimise, given scores of a batch.

Each function takes the discriminator's scores (before any sigmoid) of real and of generated images,
shape (B,) each, and returns a float32 scalar. The relativistic losses compare the two, so both
players have the same loss with the roles exchanged; the others judge an image by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ltbench.errors import unknown_name

ScoreLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GANLoss:
    """The losses of the two players.

    Attributes:
        discriminator: ``discriminator(real, fake)``, minimised by the discriminator.
        generator: ``generator(real, fake)``, minimised by the generator.
        relativistic: Whether the generator's loss depends on the scores of real images.
    """

    discriminator: ScoreLoss
    generator: ScoreLoss
    relativistic: bool = False


def relativistic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-mean_i ln sigmoid(real_i - fake_i): pairs by position in the batch.

    RSGAN, Jolicoeur-Martineau 2019, arXiv 1807.00734; the generator swaps the arguments.
    """
    return F.softplus(fake.float() - real.float()).mean()


def relativistic_average_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Each image against the mean score of the other kind, summed over the two kinds.

    RaSGAN, arXiv 1807.00734; the generator swaps the arguments. The means are over
    the scores given, so under several ranks over a rank's own share of the batch.
    """
    real, fake = real.float(), fake.float()
    return F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's side: mean max(0, 1 - real) + mean max(0, 1 + fake).

    Lim and Ye 2017, arXiv 1705.02894; Miyato et al. 2018, arXiv 1802.05957, eq. 16.
    """
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def logistic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's side: -mean ln sigmoid(real) - mean ln(1 - sigmoid(fake)).

    Goodfellow et al. 2014, arXiv 1406.2661, eq. 1.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's side of the hinge loss: -mean fake; arXiv 1802.05957, eq. 17."""
    return -fake.float().mean()


def non_saturating_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's side: -mean ln sigmoid(fake); arXiv 1406.2661, section 3."""
    return F.softplus(-fake.float()).mean()


def _swapped(loss: ScoreLoss) -> ScoreLoss:
    return lambda real, fake: loss(fake, real)


GAN_LOSSES: dict[str, GANLoss] = {
    "relativistic": GANLoss(relativistic_loss, _swapped(relativistic_loss), relativistic=True),
    "relativistic_average": GANLoss(
        relativistic_average_loss, _swapped(relativistic_average_loss), relativistic=True
    ),
    "hinge": GANLoss(hinge_loss, critic_loss),
    "non_saturating": GANLoss(logistic_loss, non_saturating_loss),
}
"""Every adversarial loss by its name in a config."""


def gan_loss(name: str) -> GANLoss:
    """Return the losses of both players, by a key of :data:`GAN_LOSSES`."""
    if name not in GAN_LOSSES:
        raise unknown_name("GAN loss", name, GAN_LOSSES)
    return GAN_LOSSES[name]

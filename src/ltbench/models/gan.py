"""Generators and spectrally normalised discriminators for small images: SNDCGAN and SNResGAN.

SNDCGAN is the standard CNN and SNResGAN the ResNet of Miyato et al., arXiv 1802.05957, appendix B,
in the form of arXiv 2106.09402; ``snresgan_inplace`` is the latter as its code was released. Both
start from 4 x 4 pixels and double. A generator maps latents (B, latent) and, if conditional, labels
(B,) to images (B, channels, size, size) in [-1, 1]. A discriminator gives one score per image,
before any sigmoid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ltbench.errors import UserError

Conditioning = Literal["none", "acgan", "projection"]

SLOPE = 0.1  # of every leaky ReLU
START = 4  # pixels a side that a generator starts from

# SNResGAN by image size, in multiples of the width: channels of the generator from its start, of
# the discriminator after each block, and the number of its blocks that halve the image.
RESGAN: dict[int, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    32: ((4, 4, 4, 4), (2, 2, 2, 2), 2),
    64: ((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4),
    128: ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
}


@dataclass
class Architecture:
    """A pair of networks.

    Args:
        family: ``sndcgan`` for any size 4 * 2^n; ``snresgan`` and ``snresgan_inplace`` for the
            sizes of :data:`RESGAN`. In the released code of arXiv 2106.09402, the first leaky ReLU
            of a discriminator's block overwrites its input, so that the shortcut passes activated
            features on: ``snresgan_inplace``. ``snresgan`` has the block of the literature, whose
            shortcut passes the input on.
        image_size: Side of the images in pixels.
        width: Unit of the channel counts; 64 is the published one.
        latent: Length of a latent vector.
        conditioning: ``none``; ``acgan``, a discriminator that also classifies (arXiv 1610.09585);
            ``projection``, one that takes the label as well (arXiv 1802.05637). The generator of
            both has class-conditional batch norm.
    """

    family: Literal["sndcgan", "snresgan", "snresgan_inplace"] = "sndcgan"
    image_size: int = 32
    width: int = 64
    latent: int = 128
    conditioning: Conditioning = "none"


def build_gan(
    architecture: Architecture, num_classes: int, in_chans: int = 3
) -> tuple["Generator", "Discriminator"]:
    """Build a generator and a discriminator; without conditioning the classes do not matter.

    Raises:
        UserError: The family does not make images of this size.
    """
    size, width = architecture.image_size, architecture.width
    blocks = (size // START).bit_length() - 1
    if size != START << max(blocks, 1):
        raise UserError(f"image_size {size}: a GAN's images have 8, 16, 32, ... pixels per side.")
    body: nn.Module
    block: type[_Up | _ResidualUp]
    if architecture.family == "sndcgan":
        channels = [width << k for k in range(blocks + 1)]
        up, block = channels[::-1], _Up
        body = _dcgan_body(channels, in_chans)
    elif size in RESGAN:
        of_generator, of_discriminator, halving = RESGAN[size]
        up, block = [width * k for k in of_generator], _ResidualUp
        channels = [width * k for k in of_discriminator]
        inplace = architecture.family == "snresgan_inplace"
        body = _residual_body(channels, in_chans, halving, inplace)
    else:
        sizes = ", ".join(map(str, RESGAN))
        raise UserError(f"image_size {size}: snresgan's images have {sizes} pixels per side.")
    conditional = architecture.conditioning != "none"
    return (
        Generator(block, up, in_chans, num_classes if conditional else 0, architecture.latent),
        Discriminator(body, channels[-1], architecture.conditioning, num_classes),
    )


def _orthogonal(module: nn.Module) -> None:
    """Orthogonal weights and zero biases, as arXiv 2106.09402 starts both networks."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.orthogonal_(module.weight)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _spectral(module: nn.Module) -> None:
    """Divide each weight by its largest singular value; the weights must be initialised before."""
    if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
        spectral_norm(module, eps=1e-6)


class ClassBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on the class (arXiv 1610.07629); plain for 0 classes.

    Args:
        channels: Channels of the input.
        num_classes: Number of classes, or 0.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conditional = num_classes > 0
        self.norm = nn.BatchNorm2d(
            channels, affine=not self.conditional, eps=1e-4 if self.conditional else 1e-5
        )
        if self.conditional:
            self.gain = nn.Embedding(num_classes, channels)
            self.bias = nn.Embedding(num_classes, channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Normalise (B, channels, H, W) for labels (B,)."""
        x = self.norm(x)
        if self.conditional:
            x = x * (1 + self.gain(labels))[:, :, None, None] + self.bias(labels)[:, :, None, None]
        return x


class _Up(nn.Module):
    """Transposed convolution, batch norm, leaky ReLU."""

    def __init__(self, in_planes: int, planes: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_planes, planes, 4, stride=2, padding=1)
        self.norm = ClassBatchNorm(planes, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = self.norm(self.conv(x), labels)
        return F.leaky_relu(x, SLOPE)


class _ResidualUp(nn.Module):
    """Two convolutions, each after batch norm and leaky ReLU, around a 1x1 convolution."""

    def __init__(self, in_planes: int, planes: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ClassBatchNorm(in_planes, num_classes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1)
        self.norm2 = ClassBatchNorm(planes, num_classes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.skip = nn.Conv2d(in_planes, planes, 1)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        out: Tensor = F.interpolate(F.leaky_relu(self.norm1(x, labels), SLOPE), scale_factor=2.0)
        out = F.leaky_relu(self.norm2(self.conv1(out), labels), SLOPE)
        # Doubling after a 1x1 convolution is the same as before it, at a quarter of the cost.
        out = self.conv2(out) + F.interpolate(self.skip(x), scale_factor=2.0)
        return out


class Generator(nn.Module):
    """Latents to images: a linear layer to 4 x 4 pixels, doubling blocks, a convolution and tanh.

    Args:
        block: Kind of doubling block.
        channels: Channels at the start and after each block.
        in_chans: Channels of the images.
        num_classes: Classes of its class-conditional batch norm; 0 makes it unconditional.
        latent: Length of a latent vector.
    """

    def __init__(
        self,
        block: type[_Up | _ResidualUp],
        channels: Sequence[int],
        in_chans: int,
        num_classes: int,
        latent: int,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, channels[0] * START**2)
        self.blocks = nn.ModuleList(block(*planes, num_classes) for planes in pairwise(channels))
        # The blocks of SNResGAN end in a convolution, those of SNDCGAN in an activation.
        self.norm = ClassBatchNorm(channels[-1], num_classes) if block is _ResidualUp else None
        self.conv = nn.Conv2d(channels[-1], in_chans, 3, padding=1)
        self.apply(_orthogonal)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images (B, in_chans, size, size) in [-1, 1] of latents (B, latent)."""
        x: Tensor = self.linear(latents).unflatten(1, (-1, START, START))
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, labels)
        if self.norm is not None:
            x = F.leaky_relu(self.norm(x, labels), SLOPE)
        return torch.tanh(self.conv(x))


class _ResidualDown(nn.Module):
    """Two convolutions around a shortcut; pooled at the end if ``halve``.

    Unless it is the ``first``, it starts with an activation; if ``inplace``, so does the shortcut.
    """

    def __init__(
        self, in_planes: int, planes: int, first: bool, halve: bool, inplace: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.skip = nn.Conv2d(in_planes, planes, 1) if halve or in_planes != planes else None
        self.first = first
        self.halve = halve
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        active = x if self.first else F.leaky_relu(x, SLOPE)
        x = active if self.inplace else x
        out: Tensor = self.conv1(active)
        out = self.conv2(F.leaky_relu(out, SLOPE))
        if self.halve:
            out, x = F.avg_pool2d(out, 2), F.avg_pool2d(x, 2)
        # A 1x1 convolution commutes with the pooling, which leaves it a quarter of the pixels.
        return out + (x if self.skip is None else self.skip(x))


def _dcgan_body(channels: Sequence[int], in_chans: int) -> nn.Sequential:
    """Convolutions in pairs, the second halving, each followed by a leaky ReLU."""
    layers: list[nn.Module] = []
    for planes_in, planes in zip([in_chans, *channels], channels, strict=False):
        layers += [nn.Conv2d(planes_in, planes, 3, padding=1), nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(planes, planes, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-2])  # the last convolution keeps the size


def _residual_body(
    channels: Sequence[int], in_chans: int, halving: int, inplace: bool
) -> nn.Sequential:
    """Residual blocks, the first ``halving`` of which halve the image, then a leaky ReLU."""
    blocks = [
        _ResidualDown(*planes, first=k == 0, halve=k < halving, inplace=inplace)
        for k, planes in enumerate(pairwise([in_chans, *channels]))
    ]
    return nn.Sequential(*blocks, nn.LeakyReLU(SLOPE))


class Discriminator(nn.Module):
    """Images to scores: a body, the sum over pixels, and one linear layer or more.

    Every convolution, linear layer and embedding is spectrally normalised (arXiv 1802.05957).

    Args:
        body: Maps images to a feature map.
        features: Channels of the feature map.
        conditioning: See :class:`Architecture`.
        num_classes: Number of classes.
    """

    def __init__(
        self, body: nn.Module, features: int, conditioning: Conditioning, num_classes: int
    ) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(features, 1)
        self.classifier = nn.Linear(features, num_classes) if conditioning == "acgan" else None
        self.embedding = (
            nn.Embedding(num_classes, features) if conditioning == "projection" else None
        )
        self.apply(_orthogonal)
        self.apply(_spectral)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map images (B, in_chans, size, size) in [-1, 1] to scores (B,).

        ``projection`` needs labels (B,); ``acgan`` gives class logits (B, C) as well.
        """
        features = self.body(images).float().sum((2, 3))
        # In bfloat16 a score of 5 is good to 0.03, and losses look at differences of scores.
        with torch.autocast(images.device.type, enabled=False):
            scores = self.linear(features).squeeze(1)
            if self.embedding is not None:
                scores = scores + (self.embedding(labels) * features).sum(1)
            return scores, None if self.classifier is None else self.classifier(features)

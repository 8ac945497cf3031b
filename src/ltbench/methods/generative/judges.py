"""Trained networks that look at generated images: classifiers, and what a FID takes features from.

All take images in [-1, 1] at the size of the generator, and bring them to what they were trained
on themselves.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from ltbench import untrusted
from ltbench.errors import UserError
from ltbench.methods.generative.samples import to_uint8
from ltbench.methods.parts import stages
from ltbench.methods.parts.stages import Trained
from ltbench.models import penultimate, weights

# The weights that every published FID is measured with, as torch.hub names and hashes them.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"


class Normalise(nn.Module):
    """Images in [-1, 1] to what a network was trained on.

    Args:
        mean: Per channel, of values in [0, 1].
        std: Same scale.
        size: Side in pixels to resize to, bilinear; None leaves the size.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: list[float], std: list[float], size: int | None = None) -> None:
        super().__init__()
        self.size = size
        means, stds = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 0.5 / stds)
        self.register_buffer("shift", (0.5 - means) / stds)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) in [-1, 1] to normalised (B, C, size, size)."""
        return torch.addcmul(self.shift, self.resized(images), self.scale)

    def resized(self, images: Tensor) -> Tensor:
        """Bring float images to ``size``, if there is one."""
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bilinear")
        return images.float()

    def inverse(self, images: Tensor) -> Tensor:
        """Map normalised images back to [-1, 1]; the size stays."""
        return (images - self.shift) / self.scale


def folded(network: nn.Module) -> nn.Module:
    """Put each batch norm into the convolution before it: the same function for less work.

    Args:
        network: In evaluation mode; it stays as it is.

    Returns:
        A copy, which computes the same up to rounding, or the network itself where torch.fx cannot
        follow it (control flow that depends on the images).
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    try:
        return fuse(network)
    except Exception:  # a network may do anything with torch.fx's proxies
        return network


class Judge(nn.Module):
    """A classifier of the suite that looks at images in [-1, 1]; frozen, in evaluation mode.

    Args:
        trained: The classifier.
        num_classes: Its number of classes; any for ``fid_features``.
        in_chans: Its number of image channels.
        image_size: Side of the images in pixels.
        resize: Whether images are brought to the size that it was trained on, or have to have it.
        role: Its argument's name: ``annotator``, ``classifier`` or ``fid_features``.

    Attributes:
        name: ``<backbone>:<job id>`` or ``<backbone>:<hash>``, for the name of a metric.
        lineage: Where it came from.
        training_set: What its checkpoint says of its training images, if anything.
    """

    def __init__(
        self,
        trained: Trained,
        num_classes: int,
        in_chans: int,
        image_size: int,
        resize: bool,
        role: str,
    ) -> None:
        super().__init__()
        any_classes = role == "fid_features"
        start = stages.load(trained, num_classes, in_chans, role=role, any_classes=any_classes)
        trained_at = start.data.get("image_size", image_size)
        if trained_at != image_size and not resize:
            raise UserError(
                f"{role} {trained.path or trained.backbone} was trained on {trained_at} pixels, "
                f"but the GAN makes {image_size}: name a run at that size, or set resize: true."
            )
        self.normalise = Normalise(
            start.data.get("mean", [0.5] * in_chans),
            start.data.get("std", [0.5] * in_chans),
            trained_at if trained_at != image_size else None,
        )
        self.network = start.network.to(memory_format=torch.channels_last)
        self.classify = folded(self.network)
        self.lineage = start.lineage
        self.training_set: str | None = start.data.get("training_set")
        self.name = _name(start.network, start.lineage)
        self.shape = (1, in_chans, image_size, image_size)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [-1, 1]."""
        return self.classify(self.normalise(images))  # type: ignore[no-any-return]

    def as_they_are(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [-1, 1], not brought to what it was trained on.

        So the released code of CBGAN (arXiv 2106.09402) calls its classifier in the loop.
        """
        return self.classify(self.normalise.resized(images))  # type: ignore[no-any-return]

    @cached_property
    def width(self) -> int:
        """Length d of its pooled features."""
        return self.features(self.normalise.scale.new_zeros(self.shape)).shape[1]

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, d) that its last layer classifies."""
        return penultimate.features(self.network, self.normalise(images))


class Inception(nn.Module):
    """The Inception-v3 of the standard FID, by torch-fidelity; images are rounded to 8 bits.

    Args:
        weights: File with the standard weights; None takes those in torch.hub's folder, or
            downloads them.
    """

    name = ""  # the standard one is what `fid` alone means
    width = 2048

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                "the standard FID needs torch-fidelity: pip install torch-fidelity. Or name "
                "another feature network with --model.fid_features.path RUN."
            ) from error
        if weights is not None:
            _check_inception(Path(weights))
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], weights)
        except OSError as error:
            raise UserError(
                f"the weights of the standard FID could not be downloaded ({error}). Give "
                f"{INCEPTION_FILE} as inception_weights, or name another feature network as "
                "fid_features."
            ) from error

    def features(self, images: Tensor) -> Tensor:
        """Return the 2048 pooled features of images (B, 1 or 3, H, W) in [-1, 1]."""
        pixels = to_uint8(images).expand(-1, 3, -1, -1)
        return self.network(pixels)[0]  # type: ignore[no-any-return]


def _check_inception(path: Path) -> None:
    weights.read(path)  # refuses other files before anything in them is executed
    with untrusted.open_file(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(INCEPTION_SHA256):
        raise UserError(
            f"{path} (sha256 {sha256[:8]}...) is not {INCEPTION_FILE}: a FID with other weights "
            "cannot be compared with any other."
        )


def _name(network: nn.Module, lineage: dict[str, Any]) -> str:
    source = lineage.get("job_id", lineage.get("sha256", ""))[:8]
    if not source:  # timm's own weights, of which an architecture has several
        return str(lineage["backbone"])
    backbone = getattr(network, "pretrained_cfg", {}).get("architecture", type(network).__name__)
    best = ":best" if lineage.get("selection") == "best" else ""
    return f"{backbone}:{source}{best}"

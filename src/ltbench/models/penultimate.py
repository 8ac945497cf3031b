"""Two questions to any network: the features of a batch, and its logits by head.

A plain timm network has one head, and answers by timm's own ``forward_head`` and
``get_classifier``. A network with several heads, such as experts on a shared stem, declares them on
its own class (:class:`SeveralHeads`); timm's distilled ViT (arXiv 2012.12877) is one as well. Its
prediction is the mean of their logits, so that it too is features, all heads' side by side, and a
linear map where the heads are linear.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.models.heads import NormedLinear


@runtime_checkable
class SeveralHeads(Protocol):
    """What a network with several heads declares: names -> classifiers, and what each sees."""

    def head_classifiers(self) -> Mapping[str, nn.Linear]:
        """Return the classifier of each head: linear, or cosine."""

    def head_features(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the features (B, d) that the classifier of each head sees of images."""


def head_names(net: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's outputs: the prediction, without one, then several heads."""
    several = isinstance(net, SeveralHeads | VisionTransformerDistilled)
    return ("", *classifiers(net)) if several else ("",)


def outputs(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the logits (B, C) by head, first the prediction, as :func:`head_names` names them."""
    if len(head_names(net)) == 1:
        return {"": net(images)}
    return _with_prediction(head_logits(net, head_features(net, images)))


def _with_prediction(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the prediction, the mean of the logits of several heads, before them."""
    return logits if "" in logits else {"": torch.stack([*logits.values()]).mean(0), **logits}


def classifiers(net: nn.Module) -> dict[str, nn.Linear]:
    """Return the classifier of each head; that of a plain network has no name.

    Raises:
        UserError: One is neither linear nor cosine.
    """
    heads: Mapping[str, nn.Module]
    if isinstance(net, SeveralHeads):
        heads = net.head_classifiers()
    elif isinstance(net, VisionTransformerDistilled):
        heads = {"cls": net.head, "dist": net.head_dist}
    else:
        heads = {"": net.get_classifier()}  # type: ignore[operator]
    linear = {name: head for name, head in heads.items() if isinstance(head, nn.Linear)}
    if len(linear) < len(heads):
        other = next(head for head in heads.values() if not isinstance(head, nn.Linear))
        raise UserError(
            f"the classifier of the network is {type(other).__name__}, not linear in the features."
        )
    return linear


def head_features(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Map images (B, in_chans, H, W) to the features (B, d) that the classifier of each head sees.

    Images are brought to the size that a network asks for, where it asks for one.
    """
    size = getattr(getattr(net, "patch_embed", None), "img_size", None)
    if size and images.shape[-2:] != tuple(size):
        images = F.interpolate(images, tuple(size), mode="bicubic", antialias=True)
    if isinstance(net, SeveralHeads):
        return dict(net.head_features(images))
    maps: Tensor = net.forward_features(images)  # type: ignore[operator]
    if isinstance(net, VisionTransformerDistilled):
        return {"cls": net.head_drop(maps[:, 0]), "dist": net.head_drop(maps[:, 1])}
    return {"": net.forward_head(maps, pre_logits=True)}  # type: ignore[operator]


def head_logits(net: nn.Module, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map the features of each head to its logits (B, C)."""
    return {name: head(features[name]) for name, head in classifiers(net).items()}


def linear_heads(net: nn.Module) -> list[nn.Linear]:
    """Return the classifiers whose logits are averaged, mostly one.

    Raises:
        UserError: One is not linear.
    """
    heads = [*classifiers(net).values()]
    if any(isinstance(head, NormedLinear) for head in heads):
        raise UserError(
            "the classifier of the network is cosine, not linear in the features: take a network "
            "with head: linear."
        )
    return heads


def features(net: nn.Module, images: Tensor) -> Tensor:
    """Map images (B, in_chans, H, W) to all features (B, d), of several heads side by side."""
    parts = [*head_features(net, images).values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def by_head(net: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Cut all features (B, d) into those that the classifier of each head sees."""
    heads = classifiers(net)
    widths = [head.in_features for head in heads.values()]
    return dict(zip(heads, torch.split(features, widths, 1), strict=True))


def read_out(net: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Map all features (B, d) to logits (B, C) by head, as :func:`outputs` maps images."""
    return _with_prediction(head_logits(net, by_head(net, features)))


def classify(net: nn.Module, features: Tensor) -> Tensor:
    """Map all features (B, d) to the prediction's logits (B, C)."""
    return read_out(net, features)[""]


def linear_map(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight (C, d) and bias (C,) of :func:`classify`."""
    heads = linear_heads(net)
    weight = torch.cat([head.weight for head in heads], 1) / len(heads)
    zero = weight.new_zeros(len(weight))
    return weight, sum((zero if head.bias is None else head.bias for head in heads), zero) / len(
        heads
    )


@torch.no_grad()
def class_statistics(
    net: nn.Module, batches: Iterable[Mapping[str, Tensor]], classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Count predictions and add up features by class, in one pass; sums over ranks are exact.

    Args:
        net: In evaluation mode.
        batches: Normalised ``image`` and ``label``; there may be none.
        classes: C.
        device: Of net and batches.

    Returns:
        Confusion counts (C, C) int64, rows the truth, and sums of features (C, d) float64.
    """
    counts = torch.zeros(classes**2, dtype=torch.long, device=device)
    width = sum(head.in_features for head in classifiers(net).values())
    sums = torch.zeros(classes, width, dtype=torch.double, device=device)
    for batch in batches:
        seen = features(net, batch["image"])
        cells = batch["label"] * classes + classify(net, seen).argmax(1)
        counts.index_add_(0, cells, torch.ones_like(cells))
        sums.index_add_(0, batch["label"], seen.double())
    return counts.view(classes, classes), sums

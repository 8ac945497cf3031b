"""A classifier seen as features and a linear map, for methods that work between the two.

Any timm network whose classifier is linear will do. A distilled ViT (arXiv 2012.12877), which
averages the logits of two heads, is one as well: its features are both tokens side by side.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.models.heads import NormedLinear


def linear_heads(net: nn.Module) -> list[nn.Linear]:
    """Return the linear classifiers of a timm network whose logits are averaged: mostly one.

    Raises:
        UserError: It has another kind of classifier.
    """
    classifier = net.get_classifier()  # type: ignore[operator]
    heads = list(classifier) if isinstance(classifier, tuple) else [classifier]
    if not all(
        isinstance(head, nn.Linear) and not isinstance(head, NormedLinear) for head in heads
    ):
        raise UserError(
            f"the classifier of the network is {type(heads[0]).__name__}, not linear in the "
            "features: take a network with head: linear."
        )
    return heads


def features(net: nn.Module, images: Tensor) -> Tensor:
    """Map images (B, in_chans, H, W) to the features (B, d) that the classifier sees.

    Images are brought to the size that a network asks for, where it asks for one.
    """
    size = getattr(getattr(net, "patch_embed", None), "img_size", None)
    if size and images.shape[-2:] != tuple(size):
        images = F.interpolate(images, tuple(size), mode="bicubic", antialias=True)
    maps: Tensor = net.forward_features(images)  # type: ignore[operator]
    heads = len(linear_heads(net))
    if heads > 1:
        return maps[:, :heads].flatten(1)  # the tokens of the heads come first
    found: Tensor = net.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    return found


def classify(net: nn.Module, features: Tensor) -> Tensor:
    """Map features (B, d) to logits (B, C)."""
    heads = linear_heads(net)
    parts = features.chunk(len(heads), 1)
    logits = [head(part) for head, part in zip(heads, parts, strict=True)]
    return torch.stack(logits).mean(0)


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
        net: In evaluation mode, on ``device``.
        batches: Normalised ``image`` and ``label``, on ``device``; there may be none.
        classes: C.
        device: Where the results are.

    Returns:
        Confusion counts (C, C) int64, rows the truth, and sums of features (C, d) float64.
    """
    counts = torch.zeros(classes**2, dtype=torch.long, device=device)
    sums = torch.zeros(linear_map(net)[0].shape, dtype=torch.double, device=device)
    for batch in batches:
        found = features(net, batch["image"])
        cells = batch["label"] * classes + classify(net, found).argmax(1)
        counts.index_add_(0, cells, torch.ones_like(cells))
        sums.index_add_(0, batch["label"], found.double())
    return counts.view(classes, classes), sums

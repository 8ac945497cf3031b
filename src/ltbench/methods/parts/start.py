"""How a run starts from a trained network: with its head, a random one, or class means."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.errors import UserError
from ltbench.methods.parts.stages import Start
from ltbench.models import penultimate

HeadInit = Literal["own", "random", "class_means"]


def require_same_network(start: Start, spec: Mapping[str, Any], new_head: bool) -> None:
    """Refuse a start whose network is not the config's (``spec``); a new head may differ.

    Raises:
        UserError: Naming what differs.
    """
    free = {"pretrained", *(("num_classes", "head") if new_head else ())}
    differing = [
        f"{key} {start.spec.get(key)!r}, not {spec.get(key)!r}"
        for key in sorted((start.spec.keys() | spec.keys()) - free)
        if start.spec.get(key) != spec.get(key)
    ]
    if differing:
        raise UserError(
            f"{start.lineage['role']} is not the network of the config ({'; '.join(differing)}): "
            "set model.backbone, backbone_args and head to its own, or backbone to null."
        )


def take_over(net: nn.Module, start: Start, head: bool) -> None:
    """Give a network the weights of a trained one; without ``head`` its classifiers stay."""
    weights = start.network.state_dict()
    if not head:
        heads = [*penultimate.classifiers(net).values()]
        places = tuple(f"{name}." for name, module in net.named_modules() if module in heads)
        weights = {name: v for name, v in weights.items() if not name.startswith(places)}
        weights |= {name: v for name, v in net.state_dict().items() if name.startswith(places)}
    net.load_state_dict(weights)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean (classes, d) float64 of the features (n, d) of each class; 0 without any."""
    sums = torch.zeros(classes, features.shape[1], dtype=torch.double)
    for rows, of in zip(torch.split(features, 4096), torch.split(labels, 4096), strict=True):
        sums.index_add_(0, of, rows.double())
    return sums / labels.bincount(minlength=classes).clamp_min(1)[:, None]


@torch.no_grad()
def set_class_means(net: nn.Module, features: Tensor, labels: Tensor) -> None:
    """Set the class vectors of each head to the class means of its features, of length 1, no bias.

    The head then predicts the class whose mean has the largest cosine with the feature.

    Args:
        net: The network.
        features: Of all training images, (n, d), not augmented, of several heads side by side.
        labels: Their labels, (n,).
    """
    heads = penultimate.classifiers(net)
    means = class_means(features, labels, next(iter(heads.values())).out_features)
    for name, part in penultimate.by_head(net, means).items():
        heads[name].weight.copy_(F.normalize(part))
        if heads[name].bias is not None:
            heads[name].bias.zero_()

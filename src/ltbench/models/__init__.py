"""Backbones: every one is a timm name; importing this package registers those timm lacks."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import timm
from torch import nn

from ltbench import trust
from ltbench.errors import UserError
from ltbench.models import (  # noqa: F401  (importing registers them)
    distilled_vit,
    experts,
    penultimate,
    resnet_cifar,
    text,
    wide_resnet,
)
from ltbench.models.heads import NormedLinear

__all__ = ["InputStatistics", "NormedLinear", "build_backbone", "trained_on"]


_OTHER_FILES = {"cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}


def build_backbone(
    name: str,
    num_classes: int,
    in_chans: int = 3,
    head: Literal["linear", "cosine"] = "linear",
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401
) -> nn.Module:
    """Build a timm model with a classifier of the wanted kind.

    Args:
        name: A timm model name, such as ``resnet32_cifar`` or ``resnet50.a1_in1k``.
        num_classes: Outputs of the classifier; 0 gives the pooled features instead.
        in_chans: Channels of the input image.
        head: ``linear``, the model's own classifier, or ``cosine``, a :class:`NormedLinear` in
            its place; of several declared heads, in the place of each.
        pretrained: Start from timm's weights for this name (downloaded on first use).
        **kwargs: Passed on to the model, for example ``drop_path_rate`` or ``img_size``.

    Raises:
        UserError: The name is unknown, it has no pretrained weights or they cannot be fetched,
            the model does not take one of ``kwargs``, one of them is not a plain value, or its
            classifiers are not linear layers that could be replaced.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise UserError(
            f"unknown backbone '{name}'.{hint}\n"
            "Any timm name will do; 'timm.list_models(\"*resnet*\")' searches them."
        )
    if unsafe := _OTHER_FILES & kwargs.keys():
        raise UserError(
            f"backbone '{name}': {min(unsafe)} is not taken, as it names files beside timm's own."
        )
    trust.require_plain(kwargs, "backbone_args")
    if pretrained and not timm.is_model_pretrained(name):
        raise UserError(f"backbone '{name}' has no pretrained weights: set pretrained to false.")
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **kwargs
        )
    except OSError as error:
        raise UserError(f"cannot load the pretrained weights of '{name}': {error}") from error
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        if not kwargs:
            raise
        arguments = ", ".join(f"{key}: {value!r}" for key, value in kwargs.items())
        cause = f"{type(error).__name__} {error}".splitlines()[0]
        raise UserError(
            f"backbone '{name}' does not take {arguments:.200} ({cause:.200})."
        ) from error
    if head == "cosine" and num_classes:
        _make_cosine(model, name)
    return model


def trained_on(name: str) -> dict[str, Any]:
    """Return what timm says of the images its weights of a name were trained on.

    Returns:
        ``num_classes``, ``mean``, ``std`` and ``image_size``; nothing where timm has no weights.
    """
    weights = timm.get_pretrained_cfg(name)
    if weights is None or not timm.is_model_pretrained(name):
        return {}
    return {
        "num_classes": weights.num_classes,
        "mean": list(weights.mean),
        "std": list(weights.std),
        "image_size": weights.input_size[-1],
    }


@dataclass(frozen=True)
class InputStatistics:
    """How images are normalised for a network: as its weights were trained.

    Attributes:
        mean: Mean per channel of values in [0, 1].
        std: Their standard deviation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "InputStatistics | None":
        """Take them from :func:`trained_on`, or from what a checkpoint says of its data."""
        if not {"mean", "std"} <= data.keys():
            return None
        return cls(tuple(data["mean"]), tuple(data["std"]))


def _make_cosine(model: nn.Module, name: str) -> None:
    """Put cosine classifiers where the network, or timm's own API, says that classifiers are."""
    heads: list[nn.Module]
    if isinstance(model, penultimate.SeveralHeads):
        heads = [*model.head_classifiers().values()]
    else:
        heads = [model.get_classifier()]  # type: ignore[operator]
    places = {module: path for path, module in model.named_modules()}
    for linear in heads:
        if not isinstance(linear, nn.Linear):
            raise UserError(
                f"backbone '{name}' has no single linear classifier that a cosine head could "
                "replace: use head 'linear' or another backbone."
            )
        cosine = NormedLinear(linear.in_features, linear.out_features)
        model.set_submodule(places[linear], cosine)

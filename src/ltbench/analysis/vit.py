"""What the analyses of vision transformers share: the network, and images of its size."""

from collections.abc import Iterator
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltbench.analysis.subject import Rows, Subject
from ltbench.errors import UserError
from ltbench.methods.deit_lt.distillation import resize

TOKENS = ("CLS", "DIST")  # in timm's order, before the patches


def transformer(subject: Subject) -> Any:  # noqa: ANN401 - timm declares no types
    """Return the network of a subject, timm's ``VisionTransformer``.

    Raises:
        UserError: It is not a vision transformer, or has no class token.
    """
    net = subject.net
    if not isinstance(net, VisionTransformer) or not net.num_prefix_tokens:
        raise UserError(
            f"{type(net).__name__} has no attention between a class token and patches: use a run "
            "of a vision transformer, such as deit_tiny_distilled_patch4_32."
        )
    return net


def tokens(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the tokens that the network predicts from: CLS, or CLS and DIST."""
    return TOKENS if hasattr(net, "dist_token") else TOKENS[:1]


def images(subject: Subject, split: str, rows: Rows, size: int) -> Iterator[Tensor]:
    """Yield normalised images (B, C, H, W) as the network sees them."""
    side = transformer(subject).patch_embed.img_size[0]
    for batch in subject.batches(split, rows, size):
        yield resize(batch["image"], side, antialias=True)

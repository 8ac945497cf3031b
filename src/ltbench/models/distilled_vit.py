"""Distilled vision transformers: one for small images, both heads apart, and a look inside.

DeiT (Touvron et al., arXiv 2012.12877) feeds a ViT two learned tokens: CLS, which learns from the
labels, and DIST, which learns from a teacher. timm has the architecture; it gives both heads'
logits in training alone, and no attention maps. The functions here take any of its distilled ViTs,
of whatever depth, width, image and patch size. The order of the tokens is CLS, DIST, patches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

default_cfgs = generate_default_cfgs(
    {
        "deit_tiny_distilled_patch4_32": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": ("head", "head_dist"),
        }
    }
)


@register_model
def deit_tiny_distilled_patch4_32(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401
) -> nn.Module:
    """Build DeiT-Ti (width 192, 12 blocks, 3 heads) for 32 x 32 images in 8 x 8 patches of 4.

    ``img_size``, ``patch_size``, ``embed_dim``, ``depth`` and ``num_heads`` may be given.
    """
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
    model: nn.Module = build_model_with_cfg(
        VisionTransformerDistilled,
        "deit_tiny_distilled_patch4_32",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**sizes, **kwargs},
    )
    return model


@torch.no_grad()
def block_tokens(net: VisionTransformerDistilled, images: Tensor, norm: bool = False) -> Tensor:
    """Return what each block makes of the CLS and DIST tokens, (blocks, B, 2, D).

    Args:
        net: A distilled ViT, in evaluation mode.
        images: Normalised images of its size, (B, in_chans, H, W).
        norm: Put the final layer norm behind every block; the last is then what the heads see.
    """
    layers: Any = net.forward_intermediates(
        images, return_prefix_tokens=True, norm=norm, output_fmt="NLC", intermediates_only=True
    )
    return torch.stack([prefix for _, prefix in layers])


@torch.no_grad()
def attention_maps(net: VisionTransformerDistilled, images: Tensor) -> list[Tensor]:
    """Return each block's attention, (B, heads, N, N) a block: rows are queries and sum to 1.

    Fused kernels never form these maps, so this pass computes the softmax openly.

    Args:
        net: A distilled ViT, in evaluation mode.
        images: Normalised images of its size, (B, in_chans, H, W).
    """
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        maps.append(output)

    with _open_attention(net) as dropouts:
        hooks = [dropout.register_forward_hook(keep) for dropout in dropouts]
        try:
            net.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
    return maps


@contextmanager
def _open_attention(net: VisionTransformerDistilled) -> Iterator[list[nn.Module]]:
    """Switch fused attention off; yield the module of each block that its maps pass through."""
    layers: list[Any] = [block.attn for block in net.blocks]
    fused = [layer.fused_attn for layer in layers]
    for layer in layers:
        layer.fused_attn = False
    try:
        yield [layer.attn_drop for layer in layers]
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was

"""Experts for small images: ResNet-32 with a shared stem and private late stages (RIDE's)."""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ltbench.models import penultimate
from ltbench.models.resnet_cifar import he_normal, stage

default_cfgs = generate_default_cfgs(
    {"resnet32_cifar_experts": {"num_classes": 10, "input_size": (3, 32, 32)}}
)


class CifarExperts(nn.Module):
    """A CIFAR ResNet whose second and third stages, of 24 and 48 channels, each expert has alone.

    The first stage, of 16 channels, is shared. The experts are its heads
    (:class:`~ltbench.models.penultimate.SeveralHeads`), and the mean of their logits predicts.

    Source: Wang et al., RIDE, arXiv 2010.01809, in the form of its released code.

    Args:
        depth: Number of weighted layers on a path, ``6 n + 2`` for ``n`` blocks per stage.
        experts: Number of experts.
        num_classes: Outputs of each head.
        in_chans: Channels of the input image.
    """

    def __init__(
        self, depth: int = 32, experts: int = 3, num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.num_classes, self.num_features = num_classes, 48 * experts
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            stage(16, 16, blocks, stride=1),
        )
        self.experts = nn.ModuleList(
            nn.Sequential(stage(16, 24, blocks, stride=2), stage(24, 48, blocks, stride=2))
            for _ in range(experts)
        )
        self.heads = nn.ModuleList(nn.Linear(48, num_classes) for _ in range(experts))
        self.apply(he_normal)

    def head_classifiers(self) -> dict[str, nn.Linear]:
        """Return the classifier of each expert."""
        heads: list[Any] = [*self.heads]
        return {f"expert{k}": head for k, head in enumerate(heads, 1)}

    def head_features(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (N, in_chans, H, W) to the features (N, 48) of each expert."""
        shared = self.stem(images)
        return {
            f"expert{k}": F.adaptive_avg_pool2d(expert(shared), 1).flatten(1)
            for k, expert in enumerate(self.experts, 1)
        }

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the mean (N, num_classes) of the experts' logits."""
        return penultimate.outputs(self, images)[""]


@register_model
def resnet32_cifar_experts(pretrained: bool = False, **kwargs: Any) -> CifarExperts:  # noqa: ANN401
    """ResNet-32 with three experts: 770,896 parameters for 10 classes with cosine heads."""
    name = "resnet32_cifar_experts"
    return build_model_with_cfg(CifarExperts, name, pretrained, depth=32, **kwargs)

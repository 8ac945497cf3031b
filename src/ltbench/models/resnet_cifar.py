"""ResNet for small images: the CIFAR network of He et al., arXiv 1512.03385, section 4.2."""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs = generate_default_cfgs(
    {
        "resnet32_cifar": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2023, 0.1994, 0.2010),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


def he_normal(module: nn.Module) -> None:
    """Draw the weights of a convolution or linear layer He-normal (fan-in)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.extra_planes = planes - in_planes

    def shortcut(self, x: Tensor) -> Tensor:
        """Take every ``stride``-th pixel and pad the new channels with zeros, half on each side."""
        if self.stride == 1 and self.extra_planes == 0:
            return x
        front = self.extra_planes // 2
        channels = (front, self.extra_planes - front)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_planes, H, W) to (N, planes, H / stride, W / stride), rounded up."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


def stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """Return a stage of basic blocks, the first of which strides."""
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of basic blocks with 16, 32 and 64 channels, and a linear head.

    Follows the model contract of timm. Convolution and linear weights start He-normal (fan-in).

    Args:
        depth: Number of weighted layers, ``6 n + 2`` for ``n`` blocks a stage.
        num_classes: Outputs of the head; 0 returns the pooled features.
        in_chans: Channels of the input image.
    """

    def __init__(self, depth: int = 32, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks, stride=1)
        self.layer2 = stage(16, 32, blocks, stride=2)
        self.layer3 = stage(32, 64, blocks, stride=2)
        self.fc: nn.Module
        self.reset_classifier(num_classes)
        self.apply(he_normal)

    def get_classifier(self) -> nn.Module:
        """Return the head, an identity where there is none."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one; 0 classes removes it."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc.apply(he_normal)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to a feature map (N, 64, H / 4, W / 4), rounded up."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.layer3(self.layer2(self.layer1(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map to (N, 64) and classify it unless ``pre_logits``."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:  # noqa: ANN401
    """ResNet-32: 464,154 parameters for 10 classes."""
    return build_model_with_cfg(CifarResNet, "resnet32_cifar", pretrained, depth=32, **kwargs)

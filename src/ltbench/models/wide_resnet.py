"""Wide residual networks: Zagoruyko and Komodakis, arXiv 1605.07146, table 1."""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

_CIFAR: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "conv1",
    "classifier": "fc",
}

default_cfgs = generate_default_cfgs(
    {name: _CIFAR for name in ("wrn_28_2", "wrn_28_8", "wrn_28_10")}
)


class PreActBlock(nn.Module):
    """BN, activation, convolution, twice; where the size changes, a 1x1 convolution as shortcut.

    Such a projecting block shares its first activation between both branches.
    """

    def __init__(
        self, in_planes: int, planes: int, stride: int, negative_slope: float, bn_momentum: float
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes, momentum=bn_momentum)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes, momentum=bn_momentum)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.projection: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.projection = nn.Conv2d(in_planes, planes, 1, stride, bias=False)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_planes, H, W) to (N, planes, H / stride, W / stride), rounded up."""
        active = F.leaky_relu(self.bn1(x), self.negative_slope, inplace=True)
        shortcut = x if self.projection is None else self.projection(active)
        out = F.leaky_relu(self.bn2(self.conv1(active)), self.negative_slope, inplace=True)
        return self.conv2(out) + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A 3x3 stem and three groups of pre-activation blocks of 16, 32 and 64 times ``width``.

    Follows the model contract of timm. Convolutions start He-normal (fan-out), the head's bias at
    zero. The defaults are the paper's; the semi-supervised code bases (FixMatch, arXiv 2001.07685)
    set ``negative_slope=0.1`` and ``bn_momentum=0.001``.

    Args:
        depth: Number of weighted layers, ``6 n + 4`` for ``n`` blocks a group.
        width: Widening factor k.
        num_classes: Outputs of the head; 0 returns the pooled features.
        in_chans: Channels of the input image.
        negative_slope: Slope of the activation below zero; 0 is the ReLU.
        bn_momentum: Weight of the newest batch in BatchNorm's running statistics, in [0, 1].
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        num_classes: int = 10,
        in_chans: int = 3,
        negative_slope: float = 0.0,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.num_features = self.head_hidden_size = 64 * width
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        planes = 16
        groups = []
        for out_planes, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            blocks = []
            for index in range((depth - 4) // 6):
                blocks.append(
                    PreActBlock(
                        planes, out_planes, 1 if index else stride, negative_slope, bn_momentum
                    )
                )
                planes = out_planes
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(planes, momentum=bn_momentum)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.fc: nn.Module
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the head, an identity where there is none."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one; 0 classes removes it."""
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes)
            nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to a map (N, 64 width, H / 4, W / 4), rounded up."""
        x = self.groups(self.conv1(x))
        return F.leaky_relu(self.bn(x), self.negative_slope, inplace=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map to (N, 64 width) and classify it unless ``pre_logits``."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


@register_model
def wrn_28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:  # noqa: ANN401
    """WRN-28-2: 1,467,610 parameters for 10 classes."""
    return build_model_with_cfg(WideResNet, "wrn_28_2", pretrained, depth=28, width=2, **kwargs)


@register_model
def wrn_28_8(pretrained: bool = False, **kwargs: Any) -> WideResNet:  # noqa: ANN401
    """WRN-28-8: 23,401,012 parameters for 100 classes."""
    return build_model_with_cfg(WideResNet, "wrn_28_8", pretrained, depth=28, width=8, **kwargs)


@register_model
def wrn_28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:  # noqa: ANN401
    """WRN-28-10: 36,479,194 parameters for 10 classes."""
    return build_model_with_cfg(WideResNet, "wrn_28_10", pretrained, depth=28, width=10, **kwargs)

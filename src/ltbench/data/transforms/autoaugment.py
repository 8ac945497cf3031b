"""AutoAugment of a whole batch on the device, each image with its own policy (1805.09501)."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment as Policies
from torchvision.transforms import AutoAugmentPolicy
from typing_extensions import override

from ltbench.data.transforms.basic import BatchTransform, on_host
from ltbench.data.transforms.randaugment import (
    INVERT,
    SPACES,
    TRANSLATION,
    apply_operations,
    geometric,
)

_BINS = 9  # magnitudes are 0 to 9
_GREY = (128, 128, 128)
_NEAREST, _BICUBIC = (geometric(TRANSLATION, fill=_GREY, bicubic=b) for b in (False, True))
_OPERATIONS = {
    **SPACES["standard"],
    **INVERT,
    **_NEAREST,
    **{name: _BICUBIC[name] for name in ("ShearX", "ShearY")},
}


class AutoAugment(BatchTransform):
    """Apply to each image the two operations of one policy, drawn from those learnt for a set.

    Policies and magnitudes are those of torchvision. Geometry is that of the code that PaCo and
    others were released with: grey 128 outside the image, bicubic shears, whole pixels (rounded)
    of translation and rotation by nearest neighbours.

    Args:
        policy: The set that the policies were learnt for.
    """

    def __init__(self, policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10") -> None:
        super().__init__()
        names = list(_OPERATIONS)
        policies = Policies(AutoAugmentPolicy(policy)).policies
        # (policies, turns, 4): operation, probability, level in [0, 1]
        self.table = torch.tensor(
            [
                [(names.index(name), p, (bin_ or 0) / _BINS) for name, p, bin_ in each]
                for each in policies
            ]
        )

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, device = len(images), images.device
        host = on_host(generator)
        which = torch.randint(len(self.table), (batch,), generator=host)
        operation, p, level = self.table[which].movedim(1, 0).unbind(-1)
        applied = torch.rand(p.shape, generator=host) < p
        drawn = operation.long() * applied  # the first operation is the identity
        negative = torch.randint(2, p.shape, generator=generator, device=device)
        operations = _OPERATIONS.values()
        ranges = torch.tensor([each[1:] for each in operations])
        strengths = torch.cat([ranges[drawn], level[..., None]], -1)
        mild, severe, signed, level = strengths.to(device, non_blocking=True).unbind(-1)
        magnitude = (mild + (severe - mild) * level) * (1 - 2 * negative * signed)
        return apply_operations(images, [each.apply for each in operations], drawn, magnitude)

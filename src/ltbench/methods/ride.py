"""RIDE: experts on a shared stem, each with LDAM's loss, pushed apart from their mean."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.losses import class_balanced_weights, ldam_loss
from ltbench.methods.base import Paper, always
from ltbench.methods.erm import Reweighting
from ltbench.methods.optimised import OptimisedModule
from ltbench.models import penultimate
from ltbench.optim.schedules import epoch_of


def class_temperatures(class_counts: Tensor, rho: float) -> Tensor:
    """Return T_c = (C pi_c rho + 1 - rho) / max of it, shape (C,): the largest class has 1.

    Source: Wang et al., arXiv 2010.01809, in the form of its released code.

    Args:
        class_counts: Training images per class, (C,).
        rho: In [0, 1]; 0 gives ones.
    """
    counts = class_counts.float()
    shares = len(counts) * counts / counts.sum() * rho + 1 - rho
    return shares / shares.max()


def diversity(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Return mean(T)^2 times the sum over experts of KL(softmax(m / T) || softmax(z_e / T)).

    m is the mean of the logits z_e, without a gradient; the KL is a mean over the batch.

    Source: Wang et al., arXiv 2010.01809, in the form of its released code.

    Args:
        logits: Of E experts, (E, B, C).
        temperatures: T, one per class, (C,).
    """
    mean = (logits.detach().mean(0) / temperatures).log_softmax(1)
    each = (logits / temperatures).log_softmax(2)
    apart = F.kl_div(each, mean.expand_as(each), reduction="sum", log_target=True)
    return temperatures.mean() ** 2 * apart / logits.shape[1]


class RIDE(OptimisedModule):
    """Train experts on a shared stem by LDAM's loss of each, less the diversity of all.

    Args:
        backbone: A network that declares several heads, such as ``resnet32_cifar_experts``.
        diversity_weight: lambda of the diversity: 0.45 on CIFAR-100, 0.2 elsewhere in the paper.
        rho: Spread of the temperatures of classes: 0.05 on CIFAR, 0.02 on ImageNet-LT, 0.015 on
            iNaturalist; all are 1 before ``reweighting`` starts.
        max_margin: LDAM's margin of the rarest class.
        scale: Factor on the cosines.
        reweighting: When class weights and temperatures start, and the weights' beta; default:
            from 80 % of training, 0.9999.
        **kwargs: The rest of :class:`~ltbench.methods.optimised.OptimisedModule`.

    Raises:
        UserError: The network has one head only, or an argument is out of its range.
    """

    paper = Paper(
        title="Long-tailed Recognition by Routing Diverse Distribution-Aware Experts",
        venue="ICLR 2021",
        arxiv="2010.01809",
        equations={
            "LDAM (1906.07413, eq. 13)": "ltbench.losses.ldam_loss",
            "class-balanced weights (1901.05555, eq. 2)": "ltbench.losses.class_balanced_weights",
            "diversity of the experts": "ltbench.methods.ride.diversity",
            "temperatures of classes": "ltbench.methods.ride.class_temperatures",
        },
        deviations={
            "The last epoch is reported; the published code reports the best epoch on "
            "test.": always,
            "The router that leaves out experts, and distillation from more experts, are not "
            "here.": always,
        },
    )

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        backbone: str | None = "resnet32_cifar_experts",
        diversity_weight: float = 0.2,
        rho: float = 0.05,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweighting: Reweighting | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_classes, in_chans, backbone=backbone, head="cosine", **kwargs)
        if not 0 <= rho <= 1:
            raise UserError(f"rho is {rho}; it must lie in [0, 1].")
        self.diversity_weight, self.rho = diversity_weight, rho
        self.max_margin, self.scale = max_margin, scale
        self.reweighting = reweighting or Reweighting(start=0.8)

    @override
    def build(self, network: dict[str, Any]) -> None:
        super().build(network)
        if len(self.heads) == 1:
            raise UserError(
                f"backbone '{network['name']}' has a single head, and RIDE needs several experts: "
                "use resnet32_cifar_experts, or a network that declares its heads."
            )

    @override
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        cosines = penultimate.outputs(self.net, images)
        return {head: self.scale * cosine for head, cosine in cosines.items()}

    @override
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        counts, rule = self.class_counts, self.reweighting
        late = self.current_epoch >= epoch_of(rule.start, self.epochs)
        self.weight = class_balanced_weights(counts, rule.beta) if late else None
        self.temperatures = class_temperatures(counts, self.rho if late else 0)

    @override
    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features = penultimate.head_features(self.net, batch["image"])
        cosines = torch.stack([*penultimate.head_logits(self.net, features).values()])
        ldam = partial(ldam_loss, max_margin=self.max_margin, scale=self.scale, weight=self.weight)
        losses = [ldam(each, batch["label"], self.class_counts) for each in cosines]
        apart = diversity(self.scale * cosines, self.temperatures)
        loss = torch.stack(losses).sum() - self.diversity_weight * apart
        return loss, {"diversity": apart.detach()}

"""MiSLAS, stage two: head and scales learn on labels that are smoothed by class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.losses import bind_loss
from ltbench.methods.base import Paper, always
from ltbench.methods.decoupled import LWS
from ltbench.models import penultimate


class MiSLAS(LWS):
    """Stage two of MiSLAS: head and scales learn, labels are smoothed by class.

    Stage one is a run of ``erm`` with mixup (``cemixup_*``).

    Args:
        head_smoothing: Smoothing of the labels of the largest class: 0.3, on CIFAR-100 0.4.
        tail_smoothing: That of the smallest: 0, on CIFAR-100 0.1.
        lr_factor: On the learning rate of class vectors and bias, not of scales: 0.5 on CIFAR-10,
            0.2 on CIFAR-100, 0.05 on ImageNet-LT and iNaturalist 2018.
        shift_bn: Whether batch norm goes on with the statistics of class-balanced batches: on
            CIFAR-100. Features then change, and are computed in every step.
        **kwargs: Of :class:`Decoupled`.

    Raises:
        UserError: A constant is out of range.
    """

    paper = Paper(
        title="Improving Calibration for Long-Tailed Recognition",
        venue="CVPR 2021",
        arxiv="2104.00466",
        equations={
            "label-aware smoothing": "ltbench.losses.label_aware_smoothing_loss",
            "scales and class vectors": "ltbench.methods.decoupled.scaled_logits",
        },
        deviations={
            "The last epoch is reported; the published code reports the best epoch on "
            "test.": always,
        },
    )

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        head_smoothing: float = 0.3,
        tail_smoothing: float = 0.0,
        lr_factor: float = 0.5,
        shift_bn: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_classes, in_chans, **kwargs)
        if not (0 <= head_smoothing < 1 and 0 <= tail_smoothing < 1 and lr_factor >= 0):
            raise UserError(
                f"head_smoothing is {head_smoothing} and tail_smoothing {tail_smoothing}, which "
                f"must lie in [0, 1); lr_factor is {lr_factor}, which must be at least 0."
            )
        smoothing = {"head": head_smoothing, "tail": tail_smoothing}
        self.loss = bind_loss("label_aware_smoothing_loss", smoothing)
        self.lr_factor, self.shift_bn = lr_factor, shift_bn
        self.reads_features = not shift_bn

    @override
    def build(self, network: dict[str, Any]) -> None:
        super().build(network)
        heads = penultimate.linear_heads(self.net)
        biases = [head.bias for head in heads if head.bias is not None]
        self.class_vectors.requires_grad_(True)
        self.class_biases = nn.ParameterList(bias.detach().clone() for bias in biases)

    @override
    def biases(self) -> Sequence[Tensor | None]:
        return [*self.class_biases] or super().biases()

    @torch.no_grad()
    @override
    def take_heads(self) -> None:
        super().take_heads()
        heads = penultimate.linear_heads(self.net)
        for bias, head in zip(self.class_biases, heads, strict=False):  # there may be none
            bias.copy_(head.bias)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        slow = {id(p) for p in (*self.class_vectors, *self.class_biases)}
        groups = []
        for group in super().parameter_groups():
            for scale, chosen in ((1.0, False), (self.lr_factor, True)):
                some = [p for p in group["params"] if (id(p) in slow) == chosen]
                groups += [{**group, "params": some, "lr_scale": scale}] if some else []
        return groups

    @override
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.shift_bn:
            for module in self.net.modules():
                if isinstance(module, _NormBase):
                    module.train()

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        return self.loss(self.logits_of(batch), batch["label"], self.class_counts)

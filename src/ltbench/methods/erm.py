"""Empirical risk minimisation: backbone x loss x re-weighting x SAM x mixing x averaging.

CE, CE+DRW, LDAM+DRW, logit adjustment, VS, each with and without SAM, are configs of this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms import v2

from ltbench import seeding
from ltbench.data.datamodule import Batch
from ltbench.errors import UserError
from ltbench.losses import bind_loss, check_counts, class_balanced_weights
from ltbench.methods.base import ClassificationModule, Paper
from ltbench.models import build_backbone
from ltbench.sam import PGD, SAM, GradientRule, Plain
from ltbench.schedules import LRSchedule, MultiStep, epoch_of


@dataclass
class Reweighting:
    """Class-balanced weights (arXiv 1901.05555), from the first epoch or deferred (DRW).

    Args:
        start: Point in training from which the weights apply; before it all are 1.
        beta: Of the effective number of samples (1 - beta^n) / (1 - beta), in [0, 1).
    """

    start: int | float = 0
    beta: float = 0.9999


class ERM(ClassificationModule):
    """Train one classifier by minimising one loss on the long-tailed training set.

    Args:
        num_classes: Number of classes; the command line takes it from the data.
        in_chans: Number of image channels; the command line takes it from the data.
        backbone: Any timm name; ``resnet32_cifar``, ``wrn_28_2`` and ``wrn_28_10`` are added here.
        backbone_args: Further arguments of ``timm.create_model``.
        head: ``linear``, or the ``cosine`` classifier that LDAM needs.
        loss: A function of :mod:`ltbench.losses`.
        loss_args: Its constants, for example ``{gamma: 0.15, tau: 1.25}`` for ``vs_loss``.
        reweighting: Class weights and when they start; none by default.
        optimizer: Any torch or timm optimizer.
        lr_schedule: Factor on the learning rate by epoch; default: ``MultiStep``, the CIFAR recipe.
        gradient_rule: Where the gradient is taken: ``SAM``, ``LPFSGD``, ``PGD``
            (:mod:`ltbench.sam`), or at the weights themselves by default.
        clip_norm: Largest global norm of the descent gradient; default: no clipping.
        mixup: Alpha of mixup's Beta distribution (arXiv 1710.09412); 0 is off.
        cutmix: Alpha of CutMix (arXiv 1905.04899); with mixup on, each batch takes one of the two.
        ema_decay: Decay per step of an average of the weights, which is then what is evaluated.
        compile: Compile the network with ``torch.compile``.
    """

    paper = Paper(
        title="Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data",
        venue="NeurIPS 2022",
        arxiv="2212.13827",
        equations={
            "class-balanced weights (1901.05555, eq. 2)": "ltbench.losses.class_balanced_weights",
            "focal loss (1708.02002, eq. 5)": "ltbench.losses.focal_loss",
            "LDAM (1906.07413, eq. 13)": "ltbench.losses.ldam_loss",
            "logit adjustment (2007.07314, eq. 10)": "ltbench.losses.logit_adjusted_loss",
            "balanced softmax (2007.10740, eq. 4)": "ltbench.losses.balanced_softmax_loss",
            "CDT (2001.01385)": "ltbench.losses.cdt_loss",
            "VS loss (2103.01550, eq. 2)": "ltbench.losses.vs_loss",
            "SAM (2010.01412, eq. 2)": "ltbench.sam.SAM",
            "LPF-SGD (2201.08025)": "ltbench.sam.LPFSGD",
            "PGD (1703.00887)": "ltbench.sam.PGD",
        },
        deviations=(
            "The last epoch is reported; the published code reports the best epoch on test.",
            "Batch norm statistics move in SAM's first pass only; bn_update: both is theirs.",
            "Focal loss takes p from the unweighted cross-entropy; focal_official_loss is theirs.",
        ),
    )

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        backbone: str = "resnet32_cifar",
        backbone_args: dict[str, Any] | None = None,
        head: Literal["linear", "cosine"] = "linear",
        loss: str = "cross_entropy_loss",
        loss_args: dict[str, float] | None = None,
        reweighting: Reweighting | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, weight_decay=2e-4
        ),
        lr_schedule: LRSchedule | None = None,
        gradient_rule: GradientRule | None = None,
        clip_norm: float | None = None,
        mixup: float = 0,
        cutmix: float = 0,
        ema_decay: float | None = None,
        compile: bool = False,
    ) -> None:
        """Build the network; what depends on the data waits for ``setup``."""
        super().__init__(num_classes)
        if loss == "ldam_loss" and head != "cosine":
            raise UserError(
                "ldam_loss takes margins off cosines: set model.init_args.head: cosine."
            )
        if clip_norm is not None and clip_norm <= 0:
            raise UserError(f"clip_norm is {clip_norm}; a largest norm is above 0.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}; it must lie in [0, 1).")
        self.automatic_optimization = False
        self.net = build_backbone(backbone, num_classes, in_chans, head, **(backbone_args or {}))
        self.net.to(memory_format=torch.channels_last)
        if compile:
            self.net.compile()
        self.loss_name = loss
        self.loss = bind_loss(loss, loss_args or {})
        self.reweighting = reweighting
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule or MultiStep()
        self.gradient_rule = gradient_rule or Plain()
        self.clip_norm = clip_norm
        self.ema_decay = ema_decay
        mixers = [
            mixer(alpha=alpha, num_classes=num_classes)
            for mixer, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha
        ]
        self.mix = v2.RandomChoice(mixers) if mixers else None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, in_chans, H, W)."""
        return self.net(images)  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:
        """Check what would otherwise be found out in the middle of the training."""
        super().setup(stage)
        if stage != "fit":
            return
        check_counts(self.class_counts)
        if isinstance(self.gradient_rule, PGD) and self.trainer.precision == "16-mixed":
            raise UserError(
                "PGD's noise has an absolute size, but 16-mixed gradients carry a loss scale: "
                "use --trainer.precision bf16-mixed or 32-true."
            )

    @property
    def deviations(self) -> list[str]:
        """Those of the paper's card that this run's loss and gradient rule bring about."""
        epoch, batch_norm, focal = self.paper.deviations
        rule = self.gradient_rule
        found = [epoch]
        found += [batch_norm] if isinstance(rule, SAM) and rule.bn_update == "first" else []
        found += [focal] if self.loss_name == "focal_loss" else []
        return found

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, whose learning rate follows ``lr_schedule`` by epoch."""
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise UserError("trainer.max_epochs must be set: the schedules are fractions of it.")
        try:
            optimizer = self.optimizer(self.net.parameters())
        except ValueError as error:
            raise UserError(f"optimizer: {error}") from error
        schedule = LambdaLR(optimizer, lambda epoch: self.lr_schedule.factor(epoch, epochs))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_callbacks(self) -> Sequence[Callback]:
        """Average the weights where ``ema_decay`` asks for it."""
        return [] if self.ema_decay is None else [EMAWeightAveraging(decay=self.ema_decay)]

    @property
    def class_weights(self) -> Tensor | None:
        """Weights (C,) of the current epoch, or None while all are 1."""
        rule, epochs = self.reweighting, self.trainer.max_epochs or 0
        if rule is None or self.current_epoch < epoch_of(rule.start, epochs):
            return None
        return class_balanced_weights(self.class_counts, rule.beta)

    def on_train_epoch_start(self) -> None:
        """Fix the class weights of this epoch."""
        self.weight = self.class_weights
        self.log("train/lr", self._optimizer.param_groups[0]["lr"])

    @property
    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one step along the gradient that the rule finds."""
        images, targets = batch["image"], batch["label"]
        if self.mix:
            images, targets = self.mix(images, targets)

        def loss_of(part: slice) -> Tensor:
            logits = self(images[part])
            return self.loss(logits, targets[part], self.class_counts, weight=self.weight)

        loss = self.gradient_rule.backward(
            self,
            loss_of,
            len(images),
            fraction=self.current_epoch / (self.trainer.max_epochs or 1),
            generator=seeding.generator(
                self.device, seeding.run_seed(), "noise", self.trainer.global_step
            ),
            backward=self.manual_backward,
            no_sync=self.no_sync,
        )
        self._optimizer.step()
        size = len(images)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        self.log_dict({f"train/{k}": v for k, v in self.gradient_rule.diagnostics.items()})

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the descent gradient, at its true size: float16's loss scale is off by now."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)

    def on_validation_start(self) -> None:
        """Stop before a network that has diverged is evaluated."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._require_finite_loss()

    def on_train_epoch_end(self) -> None:
        """Stop at a loss that is not finite, before a checkpoint is written; else move on."""
        self._require_finite_loss()
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        schedule.step()

    def _require_finite_loss(self) -> None:
        loss = self.trainer.callback_metrics["train/loss"]
        if not loss.isfinite():
            raise UserError(
                f"the training loss of epoch {self.current_epoch} is not finite ({loss}). The last "
                "good checkpoint is kept; lower the learning rate or the radius, or clip gradients."
            )

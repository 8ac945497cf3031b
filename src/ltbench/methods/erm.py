"""Empirical risk minimisation: backbone x loss x re-weighting x SAM x mixing x averaging.

CE, CE+DRW, LDAM+DRW, logit adjustment, VS, each with and without SAM, are configs of this file.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.transforms import v2
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.losses import bind_loss, class_balanced_weights
from ltbench.methods.base import Paper, always
from ltbench.methods.optimised import OptimisedModule
from ltbench.optim.schedules import epoch_of


@dataclass
class Reweighting:
    """Class-balanced weights (arXiv 1901.05555), from the first epoch or deferred (DRW).

    Args:
        start: Point in training from which the weights apply; before it all are 1.
        beta: Of the effective number of samples (1 - beta^n) / (1 - beta), in [0, 1).
    """

    start: int | float = 0
    beta: float = 0.9999

    def __post_init__(self) -> None:
        epoch_of(self.start, 1)  # refuses a start out of range
        if not 0 <= self.beta < 1:
            raise UserError(f"reweighting.beta is {self.beta}; it must lie in [0, 1).")


class ERM(OptimisedModule):
    """Train one classifier by minimising one loss on the long-tailed training set.

    Args:
        loss: A function of :mod:`ltbench.losses`, or the import path of the user's own.
        loss_args: Its constants, for example ``{gamma: 0.15, tau: 1.25}`` for ``vs_loss``.
        reweighting: Class weights and when they start; none by default.
        mixup: Alpha of mixup's Beta distribution (arXiv 1710.09412); 0 is off.
        cutmix: Alpha of CutMix (arXiv 1905.04899); with mixup on, each batch takes one of the two.
        **kwargs: Network, optimizer and gradient rule, as in
            :class:`~ltbench.methods.optimised.OptimisedModule`.
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
            "SAM (2010.01412, eq. 2)": "ltbench.optim.sam.SAM",
            "LPF-SGD (2201.08025)": "ltbench.optim.sam.LPFSGD",
            "PGD (1703.00887)": "ltbench.optim.sam.PGD",
        },
        deviations={
            "The last epoch is reported; the published code reports the best epoch on "
            "test.": always,
            "Batch norm statistics move in SAM's first pass only; bn_update: both is theirs.": (
                lambda run: getattr(run.gradient_rule, "bn_update", None) == "first"
            ),
            "Focal loss takes p from the unweighted cross-entropy; focal_official_loss is "
            "theirs.": lambda run: run.loss_name == "focal_loss",
        },
    )

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        loss: str = "cross_entropy_loss",
        loss_args: dict[str, float] | None = None,
        reweighting: Reweighting | None = None,
        mixup: float = 0,
        cutmix: float = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_classes, in_chans, **kwargs)
        if mixup < 0 or cutmix < 0:
            raise UserError(f"mixup is {mixup}, cutmix {cutmix}; both must be at least 0.")
        self.loss_name = loss
        self.loss = bind_loss(loss, loss_args or {})
        self.reweighting = reweighting
        mixers = [
            mixer(alpha=alpha, num_classes=num_classes)
            for mixer, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha
        ]
        self.mix = v2.RandomChoice(mixers) if mixers else None
        self.reads_features = self.mix is None  # which mixes images

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.loss_name == "ldam_loss" and self.network["head"] != "cosine":
            raise UserError(
                "ldam_loss takes margins off cosines: set model.init_args.head: cosine."
            )

    @property
    def class_weights(self) -> Tensor | None:
        """Weights (C,) of the current epoch, or None while all are 1."""
        rule = self.reweighting
        if rule is None or self.current_epoch < epoch_of(rule.start, self.epochs):
            return None
        return class_balanced_weights(self.class_counts, rule.beta)

    @override
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.weight = self.class_weights

    @override
    def prepare_step(self, batch: Batch) -> Batch:
        if self.mix is None:
            return batch
        images, labels = self.mix(batch["image"], batch["label"])
        return {"image": images, "label": labels}

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        logits = self.outputs_of(batch)[""]
        return self.loss(logits, batch["label"], self.class_counts, weight=self.weight)

"""DeiT-LT: a ViT trained from scratch on a long tail with the labels of a convolutional teacher.

Two tokens of the student learn different things: CLS the labels, DIST what the teacher says of the
student's own augmented and mixed images, which are unlike those that the teacher was trained on.
Late in training the teacher's rare answers weigh more. Predictions average both heads' logits.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor
from typing_extensions import override

from ltbench import seeding
from ltbench.data.datasets import Batch
from ltbench.data.sources.files import IMAGENET_MEAN
from ltbench.data.transforms.randaugment import RandAugment
from ltbench.errors import UserError
from ltbench.losses import bind_loss
from ltbench.methods.base import Paper, always
from ltbench.methods.deit_lt import distillation as equations
from ltbench.methods.deit_lt.distillation import Form, Teacher, resize
from ltbench.methods.deit_lt.mixing import PairMixing
from ltbench.methods.erm import Reweighting
from ltbench.methods.optimised import OptimisedModule
from ltbench.methods.parts import stages
from ltbench.methods.parts.stages import Trained
from ltbench.metrics.collector import LongTailMetrics
from ltbench.models import InputStatistics
from ltbench.models.penultimate import head_features, head_logits
from ltbench.optim.accumulation import MicroBatches, parts
from ltbench.optim.sam import Plain
from ltbench.optim.schedules import epoch_of
from ltbench.optim.step import Loss

SHOWN = {"accuracy": "accuracy", "head": "head_recall", "mid": "mid_recall", "tail": "tail_recall"}


class DeiTLT(OptimisedModule):
    """Train a distilled ViT on the labels (CLS) and on a frozen teacher's answers (DIST).

    Without a teacher both heads learn from the labels: the same student without distillation.

    Args:
        teacher: The trained network to learn from; null trains on labels alone.
        teacher_size: Side in pixels of the images that the teacher sees; default: the student's.
        teacher_antialias: Whether images are averaged on the way to that size.
        teacher_scale: Factor on the teacher's logits in soft distillation; 30 for a cosine head.
        distillation: ``hard``: the teacher's label; ``soft``: its probabilities.
        temperature: Of soft distillation.
        alpha: Share of DIST in the loss.
        loss: Of CLS, a function of :mod:`ltbench.losses`.
        loss_args: Its constants.
        reweighting: Weights of DIST by the teacher's label, and the point in training from which
            they apply (DRW); none by default.
        drw_form: The published code's weights, of mean 1, or those of the paper.
        mixup: Alpha of mixup's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's; with mixup on, each part of a batch takes one of the two.
        smoothing: Share of each CLS target that is spread over all classes.
        mix_in_drw: Whether mixing and smoothing go on while DIST is re-weighted.
        micro_batch: Images of a rank that are mixed with one another, share one mean, and pass
            through the network at a time; default: all of its batch.
        **kwargs: Network, optimizer and gradient rule, as in
            :class:`~ltbench.methods.optimised.OptimisedModule`.
    """

    paper = Paper(
        title="DeiT-LT: Distillation Strikes Back for Vision Transformer Training on "
        "Long-Tailed Datasets",
        venue="CVPR 2024",
        arxiv="2404.02900",
        equations={
            "CLS loss, soft targets (DeiT-LT code)": "ltbench.losses.cross_entropy_loss",
            "hard distillation (DeiT, eq. 3)": "ltbench.methods.deit_lt.hard_distillation_loss",
            "soft distillation (DeiT, eq. 2)": "ltbench.methods.deit_lt.soft_distillation_loss",
            "DRW weights (section 3)": "ltbench.methods.deit_lt.drw_weights",
            "DRW loss (section 3)": "ltbench.methods.deit_lt.weighted_mean",
            "teacher's view (section 3)": "ltbench.methods.deit_lt.Teacher.view",
            "schedule (2012.12877, table 9)": "ltbench.optim.schedules.DeiTCosine",
        },
        deviations={
            "The last epoch is reported; the published code reports the best epoch on "
            "test.": always,
            "DRW weights have mean 1, as in the code; drw_form: paper is the equation's.": (
                lambda run: bool(run.reweighting) and run.drw_form == "normalised"
            ),
            "RandAugment draws from other operations than timm's 15 (space: "
            "timm_increasing).": lambda run: any(
                isinstance(t, RandAugment) and t.space != "timm_increasing"
                for t in run.data.augment
            ),
            "Test images are enlarged whole; the code cuts an eighth of each side off.": (
                lambda run: run.size != run.data.image_size
            ),
            "Images are normalised by their own set's statistics; the code takes ImageNet's.": (
                lambda run: run.data.source.mean != IMAGENET_MEAN
            ),
        },
    )
    weight: Tensor | None = None
    mixed: bool = True

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        teacher: Trained | None = None,
        teacher_size: int | None = None,
        teacher_antialias: bool = False,
        teacher_scale: float = 1.0,
        distillation: Literal["hard", "soft"] = "hard",
        temperature: float = 1.0,
        alpha: float = 0.5,
        loss: str = "cross_entropy_loss",
        loss_args: dict[str, float] | None = None,
        reweighting: Reweighting | None = None,
        drw_form: Form = "normalised",
        mixup: float = 0.8,
        cutmix: float = 1.0,
        smoothing: float = 0.1,
        mix_in_drw: bool = False,
        micro_batch: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_classes, in_chans, **kwargs)
        if not (self.network and isinstance(self.net, VisionTransformerDistilled)):
            raise UserError(
                f"backbone '{self.network.get('name')}' has no DIST token: choose a distilled ViT, "
                "such as deit_base_distilled_patch16_224 or deit_tiny_distilled_patch4_32."
            )
        if not 0 <= alpha <= 1 or temperature <= 0 or (micro_batch is not None and micro_batch < 1):
            raise UserError(
                f"alpha {alpha}, temperature {temperature}, micro_batch {micro_batch}: alpha must "
                "lie in [0, 1], the others above 0."
            )
        if micro_batch is not None:
            if not isinstance(self.gradient_rule, Plain):
                raise UserError("micro_batch cuts up the batch itself: leave gradient_rule out.")
            self.gradient_rule = MicroBatches(micro_batch)
        if teacher:
            self.starts["teacher"] = teacher
        self.teacher: Teacher | None = None
        self.teacher_size = teacher_size
        self.teacher_antialias = teacher_antialias
        self.teacher_scale = teacher_scale
        self.distillation = distillation
        self.temperature = temperature
        self.alpha = alpha
        self.loss = bind_loss(loss, loss_args or {})
        self.reweighting = reweighting
        self.drw_form: Form = drw_form
        self.mixing = PairMixing(num_classes, mixup, cutmix, smoothing)
        self.mix_in_drw = mix_in_drw
        self.micro_batch = micro_batch

    @property
    def student(self) -> VisionTransformerDistilled:
        """The network that is trained."""
        assert isinstance(self.net, VisionTransformerDistilled)
        return self.net

    @property
    def size(self) -> int:
        """Side in pixels of the images that the student sees."""
        side: int = self.student.patch_embed.img_size[0]
        return side

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        batch, unit = self.data.batch_size, self.trainer.world_size * (self.micro_batch or 1)
        if self.micro_batch and batch % unit:
            near = [n for n in (batch // unit * unit, -(-batch // unit) * unit) if n]
            raise UserError(
                f"data.batch_size {batch} is not a multiple of micro_batch {self.micro_batch} x "
                f"{self.trainer.world_size} ranks: set it to {' or '.join(map(str, near))}, or "
                "choose another micro_batch."
            )
        if "teacher" in self.starts and self.teacher is None:
            self.load_teacher()

    def load_teacher(self) -> None:
        """Load the teacher, which has to fit classes and image size; training does so itself."""
        if "teacher" not in self.starts:
            raise UserError("this run has no teacher: set model.init_args.teacher.")
        channels = self.network["in_chans"]
        start = stages.load(self.starts["teacher"], self.num_classes, channels, role="teacher")
        size = self.teacher_size or self.size
        trained_at = start.data.get("image_size", size)
        if trained_at != size:
            raise UserError(
                f"the teacher was trained on images of {trained_at} pixels a side and would see "
                f"{size}: set model.init_args.teacher_size: {trained_at}."
            )
        own, known = (InputStatistics.of(data) for data in (self.data.identity(), start.data))
        self.teacher = Teacher(start.network, size, self.teacher_antialias, own, known)
        try:
            self.teacher(torch.zeros(1, channels, self.size, self.size))
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"the teacher cannot take images of {size} pixels a side ({error}): set "
                "model.init_args.teacher_size."
            ) from error
        self.lineage = [entry for entry in self.lineage if entry["role"] != "teacher"]
        self.lineage.append(start.lineage)

    @override
    def on_fit_start(self) -> None:
        # A weak teacher explains a weak student.
        if self.teacher is None:
            return
        self.teacher.to(self.device)
        measured = {
            split: self._teacher_metrics(split)
            for split in ("test", "val")
            if split in self.data.splits
        }
        self.lineage[-1]["metrics"] = measured
        console = Console(quiet=not self.trainer.is_global_zero)
        for split, metrics in measured.items():
            for logger in self.trainer.loggers:
                logger.log_metrics({f"teacher/{split}/{k}": v for k, v in metrics.items()}, step=0)
            shown = (f"{name} {100 * metrics[key]:.1f}" for name, key in SHOWN.items())
            console.print(f"Teacher on {split}, %: {', '.join(shown)}", soft_wrap=True)

    def _teacher_metrics(self, split: str) -> dict[str, float]:
        assert self.teacher is not None
        collector = LongTailMetrics(
            self.num_classes, self.class_counts, head_mid_tail=self.data.head_mid_tail
        ).to(self.device)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in self.data.evaluation_batches(split, self.device):
                images = resize(batch["image"], self.size, antialias=True)
                collector.update(self.teacher(images), batch["label"])
        return {name: float(value) for name, value in collector.compute().items()}

    @override
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        rule = self.reweighting
        self.weight = None
        if rule is not None and self.current_epoch >= epoch_of(rule.start, self.epochs):
            self.weight = equations.drw_weights(self.class_counts, rule.beta, self.drw_form)
        self.mixed = self.weight is None or self.mix_in_drw

    def prepare_step(self, batch: Batch) -> Batch:
        """Mix the images, and ask the teacher about what came of it.

        ``target`` is for CLS: labels (B,), or shares of the classes (B, C); ``taught`` for DIST:
        the teacher's labels (B,) or logits (B, C), or without one the targets.
        """
        images = resize(batch["image"], self.size, antialias=True)
        labels, targets, taught = batch["label"], [], []
        key = ("mix", self.global_rank, self.trainer.global_step)
        for part in parts(len(images), self.micro_batch):
            target = labels[part]
            if self.mixed:
                seed = seeding.derive(seeding.run_seed(), *key, part.start)
                target = self.mixing(images[part], target, seed)
            targets.append(target)
            taught.append(self._teach(images[part], target))
        return {"image": images, "target": torch.cat(targets), "taught": torch.cat(taught)}

    def _teach(self, images: Tensor, targets: Tensor) -> Tensor:
        if self.teacher is None:
            return targets
        logits = self.teacher(images)
        return logits.argmax(1) if self.distillation == "hard" else self.teacher_scale * logits

    @override
    def loss_of(self, batch: Batch) -> Loss:
        tokens = head_features(self.net, batch["image"])
        cls, dist = head_logits(self.net, tokens).values()
        cls_loss = self.loss(cls, batch["target"], self.class_counts)
        dist_loss = self._dist_loss(dist, batch["taught"])
        with torch.no_grad():
            cosine = F.cosine_similarity(tokens["cls"], tokens["dist"], eps=1e-6).mean()
        statistics = {"cls_loss": cls_loss, "dist_loss": dist_loss, "cosine": cosine}
        return (1 - self.alpha) * cls_loss + self.alpha * dist_loss, statistics

    def _dist_loss(self, logits: Tensor, taught: Tensor) -> Tensor:
        if self.teacher and self.distillation == "soft":
            losses = equations.soft_distillation_loss(logits, taught, self.temperature)
            taught = taught.argmax(1)
        else:
            losses = equations.hard_distillation_loss(logits, taught)
        return equations.weighted_mean(losses, taught, self.weight, self.drw_form)

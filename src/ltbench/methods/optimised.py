"""One network, one optimizer, one gradient rule: what ERM, PaCo, FixMatch and DeiT-LT share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from ltbench import seeding
from ltbench.data.base import DataModule
from ltbench.data.datasets import Batch, FeatureRows, Images
from ltbench.errors import UserError
from ltbench.losses import check_counts
from ltbench.methods.classification import ClassificationModule
from ltbench.methods.parts import stages
from ltbench.methods.parts.features import FrozenFeatures
from ltbench.methods.parts.stages import Trained
from ltbench.methods.parts.start import HeadInit, require_same_network, set_class_means, take_over
from ltbench.methods.parts.trainable import (
    check_selections,
    evaluation_mode,
    head_alone,
    let_learn,
    rest,
)
from ltbench.models import InputStatistics, build_backbone, penultimate, trained_on
from ltbench.optim.averaging import WeightAverage
from ltbench.optim.sam import PGD, GradientRule, Plain
from ltbench.optim.schedules import LRSchedule, MultiStep
from ltbench.optim.step import Loss, Step


class OptimisedModule(ClassificationModule):
    """A classifier trained by one optimizer along the gradient that a rule finds.

    A method draws the random inputs of a step in :meth:`prepare_step` and says what the loss of a
    batch is in :meth:`loss_of`; the gradient rule calls the latter once per pass.

    Args:
        num_classes: Number of classes; the command line takes it from the data.
        in_chans: Number of image channels; the command line takes it from the data.
        backbone: Any timm name; ``resnet32_cifar``, ``wrn_28_2`` and ``wrn_28_10`` are added here.
            Null takes the network of ``init_from``.
        backbone_args: Further arguments of ``timm.create_model``.
        head: ``linear``, or the ``cosine`` classifier that LDAM needs.
        init_from: The trained network to start from: a run, a checkpoint, a plain state dict, or
            timm's weights; default: random weights. Evaluating a checkpoint does not need it.
        head_init: With ``init_from``, what the classifier starts from: the ``own`` one of that
            network, a ``random`` one, or the ``class_means`` of its features on the training
            images. The last two also fit data with other classes.
        trainable: Which parameters of the network learn: one or several of ``all``, ``head``,
            ``norms`` (scale and shift of normalisation layers) and ``biases``. Layers without any
            stay in evaluation mode, batch norm's statistics included. With the head alone that is
            all of the network, and features are computed once: see
            :class:`~ltbench.methods.parts.features.FrozenFeatures`.
        optimizer: Any torch or timm optimizer.
        decay_norms: Whether weight decay acts on biases and normalisation layers too, as in the
            CIFAR recipes; if not, only on weights of two dimensions and more.
        lr_schedule: Factor on the learning rate; default: ``MultiStep``, the CIFAR recipe.
        gradient_rule: Where the gradient is taken: ``SAM``, ``LPFSGD``, ``PGD``
            (:mod:`ltbench.optim.sam`), or at the weights themselves by default.
        clip_norm: Largest global norm of the descent gradient; default: no clipping.
        ema_decay: Decay per step of an average of the weights, which is then what is evaluated.
        compile: Compile the network with ``torch.compile``, part by part.
    """

    average_buffers: ClassVar[bool] = True  # whether the average takes in batch norm's statistics
    reads_features: bool = False  # whether a loss takes features where nothing else changes

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        backbone: str | None = "resnet32_cifar",
        backbone_args: dict[str, Any] | None = None,
        head: Literal["linear", "cosine"] = "linear",
        init_from: Trained | None = None,
        head_init: HeadInit = "own",
        trainable: str | list[str] = "all",
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, weight_decay=2e-4
        ),
        decay_norms: bool = True,
        lr_schedule: LRSchedule | None = None,
        gradient_rule: GradientRule | None = None,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(num_classes)
        if clip_norm is not None and clip_norm <= 0:
            raise UserError(f"clip_norm is {clip_norm}; it must be above 0.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}; it must lie in [0, 1).")
        if reserved := {"name", "num_classes", "in_chans", "head"} & set(backbone_args or ()):
            raise UserError(f"backbone_args: '{min(reserved)}' is an option of the model.")
        if init_from is None and (backbone is None or head_init != "own"):
            raise UserError(
                f"backbone: {backbone or 'null'} with head_init: {head_init} needs a trained "
                "network: name its run with model.init_from.path."
            )
        self.automatic_optimization = False
        self.in_chans = in_chans
        self.head: Literal["linear", "cosine"] = head
        self.head_init = head_init
        self.trainable = [trainable] if isinstance(trainable, str) else trainable
        check_selections(self.trainable)
        self.compiled = compile
        if backbone is not None:
            options = {"num_classes": num_classes, "in_chans": in_chans, "head": head}
            self.build({"name": backbone, **options, **(backbone_args or {})})
            if init_from and init_from.backbone is None:
                init_from = replace(
                    init_from, backbone=backbone, backbone_args=backbone_args, head=head
                )
        if init_from:
            self.starts["init_from"] = init_from

        # A function is copied by reference. jsonargparse's own object holds the whole parser, which
        # an average of this module would copy, and under DDP cannot.
        def optimizer_of(parameters: Any) -> Optimizer:  # noqa: ANN401 - as torch's optimizers
            return optimizer(parameters)

        self.optimizer = optimizer_of
        self.decay_norms = decay_norms
        self.lr_schedule = lr_schedule or MultiStep()
        self.gradient_rule = gradient_rule or Plain()
        self.clip_norm = clip_norm
        self.ema_decay = ema_decay
        self.average: WeightAverage | None = None
        self.frozen: FrozenFeatures | None = None  # of the network that the run starts from

    def build(self, network: dict[str, Any]) -> None:
        """Build ``self.net`` with these arguments of :func:`~ltbench.models.build_backbone`."""
        self.network = network
        self.net = build_backbone(**network)
        self.net.to(memory_format=torch.channels_last)
        if self.compiled:  # the parts: a method may call the network's features and head apart
            for part in self.net.children():
                part.compile()

    @property
    @override
    def heads(self) -> tuple[str, ...]:
        return penultimate.head_names(self.net) if self.network else ("",)

    @property
    def input_statistics(self) -> InputStatistics | None:
        """Those of ``init_from``, or of timm's weights where the backbone has them."""
        if "init_from" in self.starts:
            return stages.input_statistics(self.starts["init_from"])
        pretrained = self.network.get("pretrained")
        return InputStatistics.of(trained_on(self.network["name"])) if pretrained else None

    @abstractmethod
    def loss_of(self, batch: Any) -> Loss:  # noqa: ANN401 - the method's own
        """Return the mean loss of a batch, a scalar; or that and statistics of it, to be logged.

        It changes nothing: a gradient rule may call it several times per step, with some samples of
        what :meth:`prepare_step` returned. Statistics are logged once, from the first pass: scalars
        by name, as means over the epoch. Tensors with a row per sample are left to
        :meth:`after_step`.
        """

    def prepare_step(self, batch: Batch) -> Any:  # noqa: ANN401 - the method's own
        """Draw what is random in the inputs of a step, once for all passes over them.

        Returns:
            A mapping of tensors, each with the same number of rows for every sample.
        """
        return batch

    def after_step(self, step: Step) -> None:
        """Follow a step of the optimizer: moving averages, queues, counts."""

    @override
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return penultimate.outputs(self.net, images)

    @override
    def outputs_of(self, batch: Batch) -> dict[str, Tensor]:
        if "features" in batch:
            return penultimate.read_out(self.net, batch["features"])
        return super().outputs_of(batch)

    @override
    def images(self, data: DataModule, split: str) -> Images:
        if self.frozen and self.reads_features and head_alone(self.trainable):
            return FeatureRows(self.frozen.of(split), data.splits[split], data.device)
        return super().images(data, split)

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.outputs(images)[""]

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            if "init_from" in self.starts:
                self.load_start()
            if self.trainable != ["all"]:
                let_learn(self.net, self.trainable)
            if self.average:
                self.average.begin(self.trainer, self)
        super().setup(stage)
        if stage != "fit":
            return
        check_counts(self.class_counts)
        self._check_images()
        if isinstance(self.gradient_rule, PGD) and self.trainer.precision == "16-mixed":
            raise UserError(
                "PGD's noise has an absolute size, but 16-mixed gradients carry a loss scale: "
                "use --trainer.precision bf16-mixed or 32-true."
            )

    def load_start(self) -> None:
        """Give the network the weights of ``init_from``, which have to fit config and data."""
        new_head = self.head_init != "own"
        start = stages.load(
            self.starts["init_from"],
            self.num_classes,
            self.in_chans,
            role="init_from",
            any_classes=new_head,
        )
        start.require_same_data(self.data.identity(), other=new_head)
        if not self.network:
            head = {"num_classes": self.num_classes, "head": self.head} if new_head else {}
            self.build({**start.spec, **head, "pretrained": False})
        require_same_network(start, self.network, new_head)
        take_over(self.net, start, head=not new_head)
        self.lineage = [start.lineage]
        path = start.lineage["path"] if "job_id" in start.lineage else None
        self.frozen = FrozenFeatures(
            self.net,
            self.data,
            Path(path) if path else None,
            self.data.device,
            self.trainer.precision,
            self.trainer.precision_plugin.forward_context,
            self.summed,
        )
        if self.head_init == "class_means":
            labels = torch.from_numpy(self.data.splits["train"].labels)
            set_class_means(self.net, self.frozen.of("train"), labels)

    @torch.no_grad()
    def _check_images(self) -> None:
        """Try the network on one image: it may have been built for another size."""
        image = self.data.normalise(self.data.source.images("train", [0]))
        image = image.to(next(self.net.parameters()).device)
        try:
            with torch.compiler.set_stance("force_eager"), evaluation_mode(self.net):
                self.outputs(image)
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            size = "x".join(map(str, image.shape[2:] or image.shape[1:]))
            raise UserError(
                f"backbone '{self.network['name']}' cannot take images of {size} ({error}): set "
                "data.image_size, or img_size in model.backbone_args."
            ) from error

    @property
    def epochs(self) -> int:
        """Length of the whole training in epochs."""
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise UserError("trainer.max_epochs must be set: the schedules are fractions of it.")
        return epochs

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters, in groups with their own options for the optimizer.

        A group may have a factor on the learning rate, ``lr_scale``.
        """
        trained = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        if self.decay_norms:
            return [{"params": [p for _, p in trained]}]
        never: set[str] = getattr(self.net, "no_weight_decay", set)()
        small = [n for n, p in trained if p.ndim <= 1 or n.removeprefix("net.") in never]
        return [
            {"params": [p for n, p in trained if n not in small]},
            {"params": [p for n, p in trained if n in small], "weight_decay": 0.0},
        ]

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A run that is evaluated may know its network from the checkpoint alone.
        super().on_load_checkpoint(checkpoint)
        if not self.network:
            self.build(checkpoint["ltbench_network"])
            if self.collectors:  # made before the heads were known
                self.collect()

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        by_step = self.lr_schedule.by == "step"
        length = int(self.trainer.estimated_stepping_batches) if by_step else self.epochs
        try:
            optimizer = self.optimizer(self.parameter_groups())
        except ValueError as error:
            raise UserError(f"optimizer: {error}") from error
        if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise UserError(
                f"optimizer: {type(optimizer).__name__} needs sparse gradients, or several per "
                "step: use torch.optim.SGD or torch.optim.AdamW."
            )
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1)
        schedule = LambdaLR(optimizer, lambda now: self.lr_schedule.factor(now, length))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @override
    def configure_callbacks(self) -> Sequence[Callback]:
        if self.ema_decay is None:
            return []
        self.average = WeightAverage(self.ema_decay, self.average_buffers)
        return [self.average]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated during training: the averaged one, if there is one."""
        averaged = self.average and self.average.network
        return averaged.net if isinstance(averaged, OptimisedModule) else self.net

    @override
    def on_train_epoch_start(self) -> None:
        if self.trainable != ["all"]:
            rest(self.net, self.trainable)
        self.log("train/lr", self._optimizer.param_groups[0]["lr"])

    @property
    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    @property
    def _schedule(self) -> LambdaLR:
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        return schedule

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        size, now = len(batch["label"]), self.trainer.global_step
        step = Step(
            self,
            self.loss_of,
            self.prepare_step(batch),
            size,
            self.current_epoch,
            self.trainer.max_epochs or 1,
            seeding.generator(self.device, seeding.run_seed(), "noise", now),
            self.manual_backward,
            self.no_sync,
        )
        loss = self.gradient_rule.backward(step)
        self.bad_step.watch(loss, now, batch["index"])
        self._optimizer.step()
        self.after_step(step)
        if self.lr_schedule.by == "step":
            self._schedule.step()
        # Not with prog_bar, for which Lightning reads the value in every step.
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=size)
        for name, value in step.statistics.items():
            if not value.ndim:
                self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=size)
        for name, measured in self.gradient_rule.diagnostics.items():
            # Lightning would make a tensor of a number by a copy that the device has to wait for.
            self.log(f"train/{name}", torch.as_tensor(measured))

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # At its true size: float16's loss scale is off by now.
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._require_finite_loss()

    @override
    def on_train_epoch_end(self) -> None:
        # Before a checkpoint is written.
        self._require_finite_loss()
        if self.lr_schedule.by == "epoch":
            self._schedule.step()

    def _require_finite_loss(self) -> None:
        loss = self.trainer.callback_metrics["train/loss"]
        if not loss.isfinite():
            raise UserError(
                f"the training loss of epoch {self.current_epoch} is not finite ({loss}), first in "
                f"{self.bad_step}: lower the learning rate or the radius, or clip gradients."
            )

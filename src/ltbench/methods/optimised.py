"""One network, one optimizer, one gradient rule: what ERM, PaCo, FixMatch and DeiT-LT share."""

from abc import abstractmethod
from collections.abc import Sequence
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

from ltbench import seeding
from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.losses import check_counts
from ltbench.methods.classification import ClassificationModule
from ltbench.models import build_backbone
from ltbench.optim.averaging import WeightAverage
from ltbench.optim.sam import PGD, GradientRule, Plain
from ltbench.optim.schedules import LRSchedule, MultiStep


class OptimisedModule(ClassificationModule):
    """A classifier trained by one optimizer along the gradient that a rule finds.

    A method draws the random inputs of a step in :meth:`prepare_step` and says what the loss of a
    part of the batch is in :meth:`loss_of`; the gradient rule calls the latter once a pass.

    Args:
        num_classes: Number of classes; the command line takes it from the data.
        in_chans: Number of image channels; the command line takes it from the data.
        backbone: Any timm name; ``resnet32_cifar``, ``wrn_28_2`` and ``wrn_28_10`` are added here.
        backbone_args: Further arguments of ``timm.create_model``.
        head: ``linear``, or the ``cosine`` classifier that LDAM needs.
        optimizer: Any torch or timm optimizer.
        decay_norms: Whether weight decay acts on biases and normalisation layers too, as in the
            CIFAR recipes; if not, only on weights of two dimensions and more.
        lr_schedule: Factor on the learning rate; default: ``MultiStep``, the CIFAR recipe.
        gradient_rule: Where the gradient is taken: ``SAM``, ``LPFSGD``, ``PGD``
            (:mod:`ltbench.optim.sam`), or at the weights themselves by default.
        clip_norm: Largest global norm of the descent gradient; default: no clipping.
        ema_decay: Decay per step of an average of the weights, which is then what is evaluated.
        compile: Compile the network with ``torch.compile``.
        on_bad_loss: Whether a loss that is not finite stops the run, or its step is skipped and
            counted (``train/skipped_steps``); ``skip`` waits for the device in every step.
    """

    average_buffers: ClassVar[bool] = True  # whether the average takes in batch norm's statistics

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        backbone: str = "resnet32_cifar",
        backbone_args: dict[str, Any] | None = None,
        head: Literal["linear", "cosine"] = "linear",
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, weight_decay=2e-4
        ),
        decay_norms: bool = True,
        lr_schedule: LRSchedule | None = None,
        gradient_rule: GradientRule | None = None,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        compile: bool = False,
        on_bad_loss: Literal["error", "skip"] = "error",
    ) -> None:
        """Build the network; what depends on the data waits for ``setup``."""
        super().__init__(num_classes)
        if clip_norm is not None and clip_norm <= 0:
            raise UserError(f"clip_norm is {clip_norm}; a largest norm is above 0.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}; it must lie in [0, 1).")
        if taken := {"name", "num_classes", "in_chans", "head"} & set(backbone_args or ()):
            raise UserError(f"backbone_args: '{min(taken)}' is no option of a backbone here.")
        self.automatic_optimization = False
        self.build(
            {
                "name": backbone,
                "num_classes": num_classes,
                "in_chans": in_chans,
                "head": head,
                **(backbone_args or {}),
            }
        )
        if compile:
            self.net.compile()

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
        self.on_bad_loss = on_bad_loss

    def build(self, network: dict[str, Any]) -> None:
        """Build ``self.net`` with these arguments of :func:`~ltbench.models.build_backbone`."""
        self.network = network
        self.net = build_backbone(**network)
        self.net.to(memory_format=torch.channels_last)

    @abstractmethod
    def loss_of(self, prepared: Any, part: slice) -> Tensor:  # noqa: ANN401 - the method's own
        """Return the mean loss of a part of the batch, a scalar.

        Args:
            prepared: What :meth:`prepare_step` returned for this batch.
            part: Which samples; the whole batch but for rules that cut it up.
        """

    def prepare_step(self, batch: Batch) -> Any:  # noqa: ANN401 - the method's own
        """Draw what is random in the inputs of a step, once for all passes over them."""
        return batch

    def after_step(self) -> None:
        """Do what a method does after each step of the optimizer."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, in_chans, H, W)."""
        return self.net(images)  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:
        """Check what would otherwise be found out in the middle of the training."""
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

    @torch.no_grad()
    def _check_images(self) -> None:
        """Show the network one image: it may have been built for another size."""
        if not self.network:  # a start, which brings its own, is loaded later
            return
        image = self.data.normalise(self.data.source.images("train", [0]))
        training = self.net.training
        try:
            with torch.compiler.set_stance("force_eager"):
                self.net.eval()
                self.outputs(image)
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            size = "x".join(map(str, image.shape[2:] or image.shape[1:]))
            raise UserError(
                f"backbone '{self.network['name']}' cannot take images of {size} ({error}): set "
                "data.image_size, or img_size in model.backbone_args."
            ) from error
        finally:
            self.net.train(training)

    @property
    def epochs(self) -> int:
        """Length of the whole training in epochs.

        Raises:
            UserError: It is not set.
        """
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise UserError("trainer.max_epochs must be set: the schedules are fractions of it.")
        return epochs

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters, in groups with options of their own for the optimizer."""
        trained = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        if self.decay_norms:
            return [{"params": [p for _, p in trained]}]
        never: set[str] = getattr(self.net, "no_weight_decay", set)()
        small = [n for n, p in trained if p.ndim <= 1 or n.removeprefix("net.") in never]
        return [
            {"params": [p for n, p in trained if n not in small]},
            {"params": [p for n, p in trained if n in small], "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, whose learning rate follows ``lr_schedule``."""
        by_step = self.lr_schedule.by == "step"
        length = int(self.trainer.estimated_stepping_batches) if by_step else self.epochs
        try:
            optimizer = self.optimizer(self.parameter_groups())
        except ValueError as error:
            raise UserError(f"optimizer: {error}") from error
        if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise UserError(
                f"optimizer: {type(optimizer).__name__} is not for a gradient that is dense and "
                "taken once a step; use torch.optim.SGD or torch.optim.AdamW."
            )
        schedule = LambdaLR(optimizer, lambda now: self.lr_schedule.factor(now, length))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_callbacks(self) -> Sequence[Callback]:
        """Average the weights where ``ema_decay`` asks for it."""
        if self.ema_decay is None:
            return []
        return [WeightAverage(self.ema_decay, self.average_buffers)]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated during training: the averaged one, if there is one."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAverage) and callback._average_model is not None:
                network = callback._average_model.module.net
                assert isinstance(network, nn.Module)
                return network
        return self.net

    def on_train_epoch_start(self) -> None:
        """Log the learning rate too."""
        super().on_train_epoch_start()
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

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one step along the gradient that the rule finds."""
        prepared, size = self.prepare_step(batch), len(batch["label"])
        before = self.buffers_before()
        loss = self.gradient_rule.backward(
            self,
            lambda part: self.loss_of(prepared, part),
            size,
            epoch=self.current_epoch,
            epochs=self.trainer.max_epochs or 1,
            generator=seeding.generator(
                self.device, seeding.run_seed(), "noise", self.trainer.global_step
            ),
            backward=self.manual_backward,
            no_sync=self.no_sync,
        )
        if self.skips(loss, before):
            if self.lr_schedule.by == "step":
                self._schedule.step()
            return
        self.bad_step.watch(loss, self.trainer.global_step, batch["index"])
        self._optimizer.step()
        self.after_step()
        if self.lr_schedule.by == "step":
            self._schedule.step()
        # Not with prog_bar, for which Lightning reads the value in every step; the bar finds it.
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=size)
        for name, value in self.gradient_rule.diagnostics.items():
            # Lightning would make a tensor of a number by a copy that the device has to wait for.
            self.log(f"train/{name}", torch.as_tensor(value))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the descent gradient, at its true size: float16's loss scale is off by now."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)

    def on_validation_start(self) -> None:
        """Stop before a network that has diverged is evaluated."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._require_finite_loss()

    def on_train_epoch_end(self) -> None:
        """Stop at a loss that is not finite, before a checkpoint is written; else move on."""
        self._require_finite_loss()
        if self.lr_schedule.by == "epoch":
            self._schedule.step()

    def _require_finite_loss(self) -> None:
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is None:
            raise UserError(f"epoch {self.current_epoch}: every step was skipped, with a bad loss.")
        if not loss.isfinite():
            raise UserError(
                f"the training loss of epoch {self.current_epoch} is not finite ({loss}), first in "
                f"{self.bad_step.told()}: lower the learning rate or the radius, or clip gradients."
            )

"""CBGAN: a GAN that a classifier in the loop keeps balanced; without it, its plain baselines."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.data.transforms.diffaugment import check_policy
from ltbench.data.transforms.diffaugment import diffaugment as augmented
from ltbench.errors import UserError
from ltbench.methods.base import Paper, always
from ltbench.methods.cbgan.balance import ClassBalance
from ltbench.methods.cbgan.losses import gan_loss
from ltbench.methods.generative.module import GenerativeModule
from ltbench.models.gan import Architecture, build_gan
from ltbench.optim.reduction import average_gradients

LOSSES = ("train/discriminator_loss", "train/generator_loss")


@dataclass
class Balance:
    """Constants of the class-balancing regulariser (:mod:`ltbench.methods.cbgan.balance`).

    Args:
        strength: Weight of the regulariser in the generator's loss.
        forgetting: Share of the effective class frequency that an update forgets, in (0, 1].
        update_every: Iterations between updates: enough for many images per class.
        start: Effective frequency of each class at the start.
        pending: Images per class that count as seen before the first update.
    """

    strength: float = 10
    forgetting: float = 0.5
    update_every: int = 2000
    start: float = 50
    pending: float = 512


class CBGAN(GenerativeModule):
    """Train a GAN on a long tail, with a frozen classifier that balances its classes.

    An iteration is ``discriminator_steps`` batches: a step of the discriminator on each, and one
    of the generator on the last. Each of these steps counts as a step of the trainer.

    Labels of training images are used by the conditional baselines alone.

    Args:
        num_classes: Number of classes; the command line takes it from the data.
        in_chans: Number of image channels; the command line takes it from the data.
        architecture: The two networks (:mod:`ltbench.models.gan`). Its ``conditioning`` makes the
            baselines ACGAN and projection GAN, whose generated labels are uniform.
        loss: A key of :data:`ltbench.methods.cbgan.losses.GAN_LOSSES`.
        discriminator_steps: Steps of the discriminator for each one of the generator.
        diffaugment: Keys of :data:`ltbench.data.transforms.diffaugment.DIFFAUGMENTS`, in order.
        balance: The regulariser; null trains the GAN without it.
        optimizer: Of the generator, and another one of the discriminator; default: Adam with
            learning rate 2e-4, betas 0.5 and 0.999, and eps 1e-6.
        ema_decay: Decay of the average of the generator, batch norm's statistics included, which
            is what is evaluated.
        ema_start: Iterations before which the average is the generator itself.
        **kwargs: Judges and samples, as in
            :class:`~ltbench.methods.generative.module.GenerativeModule`.
    """

    averages = True
    paper = Paper(
        title="Class Balancing GAN with a Classifier in the Loop",
        venue="UAI 2021",
        arxiv="2106.09402",
        equations={
            "the regulariser": "ltbench.methods.cbgan.balance_loss",
            "effective class frequency": "ltbench.methods.cbgan.updated_frequency",
            "relativistic loss (1807.00734)": "ltbench.methods.cbgan.relativistic_loss",
            "hinge loss (1802.05957, eq. 16)": "ltbench.methods.cbgan.hinge_loss",
            "DiffAugment (2006.10738)": "ltbench.data.transforms.diffaugment.diffaugment",
            "FID (1706.08500, eq. 6)": "ltbench.metrics.generation.frechet_distance",
            "KL to uniform": "ltbench.metrics.generation.kl_to_uniform",
        },
        deviations={
            "Classes are judged by an annotator trained on balanced data; the released code judges "
            "them by the classifier in the loop.": always,
            "The shortcuts of SNResGAN's discriminator pass a block's input on; in the released "
            "code they pass it on activated, as by family: snresgan_inplace.": (
                lambda run: run.family == "snresgan"
            ),
            "The last batch of an epoch is smaller; the released code drops it (drop_last).": (
                lambda run: not run.data.drop_last
            ),
            "Samples are rounded to 8 bits, as files of them are, before they are judged.": always,
            "The last iteration is reported; the released code takes the best FID on test "
            "images.": always,
        },
    )

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        architecture: Architecture | None = None,
        loss: str = "relativistic",
        discriminator_steps: int = 1,
        diffaugment: Sequence[str] = (),
        balance: Balance | None = None,
        optimizer: OptimizerCallable | None = None,
        ema_decay: float = 0.9999,
        ema_start: int = 20_000,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        architecture = architecture or Architecture()
        super().__init__(
            num_classes,
            in_chans,
            architecture.image_size,
            architecture.latent,
            conditional=architecture.conditioning != "none",
            **kwargs,
        )
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}; it must lie in [0, 1).")
        if discriminator_steps < 1 or (balance and balance.update_every < 1):
            raise UserError("discriminator_steps and balance.update_every must be at least 1.")
        if balance and "classifier" not in self.starts:
            raise UserError(
                "balance needs a classifier in the loop: name a run on the same data with "
                "--model.classifier.path RUN, or set balance: null."
            )
        check_policy(diffaugment)
        self.automatic_optimization = False
        self.loss = gan_loss(loss)
        self.discriminator_steps = discriminator_steps
        self.policy = list(diffaugment)
        self.balance = balance
        # A lambda in the signature would be nicer, but the parser reads none with a tuple in it.
        self.optimizer = optimizer or functools.partial(
            torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), eps=1e-6
        )
        self.ema_decay = ema_decay
        self.ema_start = ema_start
        self.family = architecture.family
        self.generator, self.discriminator = build_gan(architecture, num_classes, in_chans)
        self.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False)
        if balance:
            self.regulariser = ClassBalance(
                num_classes, balance.forgetting, balance.start, balance.pending
            )

    @property
    def iteration(self) -> int:
        """Iterations done: the trainer counts every step of both optimizers."""
        return self.trainer.global_step // (self.discriminator_steps + 1)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.balance:
            images = self.balance.update_every * self.data.batch_size / self.num_classes
            if images < 10:
                rank_zero_warn(
                    f"balance.update_every {self.balance.update_every} leaves {images:.1f} images "
                    "per class between updates, too few to count: the weights will stay near 1."
                )

    @override
    def configure_optimizers(self) -> list[Optimizer]:
        networks = (self.generator, self.discriminator)
        return [self.optimizer(network.parameters()) for network in networks]

    @override
    def train(self, mode: bool = True) -> Self:
        # The averaged generator always uses its running statistics.
        super().train(mode)
        self.averaged.eval()
        return self

    @override
    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.averaged(latents, labels)  # type: ignore[no-any-return]

    @override
    def on_train_epoch_start(self) -> None:
        # The record keeps their state at the end of the epoch.
        super().on_train_epoch_start()
        if self.balance:
            self.traces["class_frequency"] = self.regulariser.frequency
            self.traces["balance_weights"] = self.regulariser.weights

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        before, each = self.trainer.global_step, self.discriminator_steps + 1
        self._discriminator_step(batch)
        if before % each + 1 == self.discriminator_steps:
            self._generator_step(batch)
        if self.balance:
            period = each * self.balance.update_every
            if before // period < self.trainer.global_step // period:
                self.regulariser.update()

    def _discriminator_step(self, batch: Batch) -> None:
        real, labels = self.real_images(batch), batch["label"]
        with torch.no_grad():
            fake, fake_labels = self._generated(len(real))
        # One after the other, as in the released code: each is a power iteration of spectral norm.
        scores, classes = self.discriminator(augmented(real, self.policy), labels)
        fake_scores, fake_classes = self.discriminator(augmented(fake, self.policy), fake_labels)
        loss = self.loss.discriminator(scores, fake_scores)
        if classes is not None:
            loss = loss + F.cross_entropy(classes, labels)
            loss = loss + F.cross_entropy(fake_classes, fake_labels)
        self._step(1, self.discriminator, loss, batch)
        self._log("discriminator_loss", loss)

    def _generator_step(self, batch: Batch) -> None:
        real, labels = self.real_images(batch), batch["label"]
        generator_optimizer = self._optimizer(0)
        with self.toggled_optimizer(generator_optimizer):
            fake, fake_labels = self._generated(len(real))
            scores, classes = self.discriminator(augmented(fake, self.policy), fake_labels)
            real_scores = scores.new_zeros(0)
            if self.loss.relativistic:
                with torch.no_grad():
                    real_scores, _ = self.discriminator(augmented(real, self.policy), labels)
            loss = of_scores = self.loss.generator(real_scores, scores)
            if classes is not None:
                loss = loss + F.cross_entropy(classes, fake_labels)
            if self.balance:
                balance = self.regulariser(self._judges["classifier"].as_they_are(fake))
                loss = loss + self.balance.strength * balance
            self._step(0, self.generator, loss, batch)
        self._log("generator_loss", of_scores)
        if self.balance:
            self._log("balance", balance)
        self._average()

    def _generated(self, number: int) -> tuple[Tensor, Tensor]:
        """Return new images (B, C, H, W) and the labels (B,) that they were made for."""
        latents = torch.randn(number, self.latent, device=self.device)
        labels = torch.randint(self.num_classes, (number,), device=self.device)
        return self.generator(latents, labels).float(), labels

    def _optimizer(self, which: int) -> LightningOptimizer:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers[which]

    def _step(self, which: int, network: nn.Module, loss: Tensor, batch: Batch) -> None:
        optimizer = self._optimizer(which)
        optimizer.zero_grad()
        # Not by DDP, which wants a gradient of all parameters in every backward pass.
        with self.no_sync():
            self.manual_backward(loss)
        if self.trainer.world_size > 1:
            average_gradients(network.parameters())
        self.bad_step.watch(loss, self.trainer.global_step, batch["index"])
        optimizer.step()

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.ema_decay if self.iteration > self.ema_start else 0.0
        weights = self.generator.state_dict()
        for name, average in self.averaged.state_dict().items():
            if average.is_floating_point():
                average.lerp_(weights[name], 1 - decay)
            else:
                average.copy_(weights[name])

    def _log(self, name: str, value: Tensor) -> None:
        self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=True)

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._require_finite()
        self.agree_on(self.averaged)

    @override
    def on_train_epoch_end(self) -> None:
        # Before a checkpoint is written.
        self._require_finite()

    def _require_finite(self) -> None:
        logged = self.trainer.callback_metrics
        losses = [logged[name].to(self.device) for name in LOSSES if name in logged]
        weights = [p.detach().sum() for p in self.parameters()]
        if not torch.stack([*losses, *weights]).isfinite().all():
            first = str(self.bad_step)
            raise UserError(
                f"the GAN diverged in epoch {self.current_epoch}: a loss or a weight is not "
                f"finite{f', first in {first}' if first else ''}: lower the learning rate."
            )

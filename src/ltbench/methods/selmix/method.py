"""SelMix: fine-tune a trained run towards a metric, by mixing the pairs of classes that raise it.

An epoch is one cycle: a look at the validation images gives the confusion matrix and a centroid of
each class, these the gain of every pair of classes, and these the pairs that the epoch draws.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from ltbench import seeding
from ltbench.data.base import DataModule
from ltbench.data.datasets import Batch
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.sources.base import CIFAR_MEAN
from ltbench.data.streams import MAIN, Stream, Streams
from ltbench.errors import UserError
from ltbench.losses import cross_entropy_loss
from ltbench.methods.base import Paper, always
from ltbench.methods.optimised import OptimisedModule
from ltbench.methods.parts.held_out import HeldOut
from ltbench.methods.parts.stages import Trained
from ltbench.methods.parts.trainable import evaluation_mode
from ltbench.methods.selmix import gain
from ltbench.methods.selmix.pairs import PairSampler
from ltbench.models import penultimate
from ltbench.objectives import BestResponse, rates
from ltbench.optim.schedules import Cosine, LRSchedule

TRACED = ("objective", "positive_gains", "pseudo_label_accuracy")
ONE_PAIR = 0.95  # share of one pair of classes above which the others hardly count
MOST_TRACED = 100  # classes up to which the record keeps the share of every pair


class SelMix(OptimisedModule):
    """Fine-tune a trained network on mixtures of the class pairs that raise an objective.

    The scale and shift of batch norm are not trained, and its statistics stay those of the start.

    Args:
        num_classes: As in :class:`~ltbench.methods.optimised.OptimisedModule`.
        in_chans: Likewise.
        init_from: The trained network to start from.
        objective: A name in :data:`ltbench.objectives.OBJECTIVES`, or the import path of the
            user's own.
        coverage_target: Least coverage as a share of 1/K, for objectives that constrain it.
        policy: ``selmix``, or a control (:data:`ltbench.methods.selmix.gain.CONTROLS`).
        sharpness: s in softmax(s G); its effect depends on the scale of the features.
        positive_only: Whether pairs without a gain are left out.
        pair_smoothing: Whether all pairs get 1/K^3 more, which softens ``positive_only``.
        count_smoothing: Added to each entry of the confusion counts for the derivatives.
        partners: Where second images come from: the labelled ones, or the unlabelled ones by their
            pseudo-labels, which every cycle renews.
        cycle: Steps between two looks at the validation images: the length of an epoch.
        min_share: Least weight of the first image; weights are uniform between it and 1.
        backbone: Default: the network of ``init_from``.
        optimizer: Any torch or timm optimizer; its learning rate is that of the classifier.
        lr_schedule: Factor on the learning rate; default: ``Cosine``.
        backbone_lr: Learning rate of the backbone over that of the classifier.
        **kwargs: The rest of :class:`~ltbench.methods.optimised.OptimisedModule`.
    """

    paper = Paper(
        title="Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives",
        venue="ICLR 2024",
        arxiv="2403.18301",
        equations={
            "objectives and derivatives (section 3)": "ltbench.objectives.Objective.logit_gradient",
            "multipliers (code)": "ltbench.objectives.BestResponse",
            "gain of a pair (section 4)": "ltbench.methods.selmix.pair_gains",
            "policy softmax(s G) (section 4)": "ltbench.methods.selmix.selective",
            "smoothing of the sampler (code)": "ltbench.methods.selmix.smooth",
        },
        deviations={
            "The learning rate falls cycle by cycle, not step by step.": always,
            "Validation images are seen once; the code adds their mirror images.": always,
            "Derivatives are exact for every class prior; the code assumes a uniform one.": always,
            "Derivatives are of counts with count_smoothing added, so that classes of no recall "
            "count too; the code takes the plain ones, entries of C no less than 1e-7.": (
                lambda run: run.count_smoothing > 0
            ),
            "The gain is exact; the code takes <z_i, z_k> for <z_ij, z_k> in the label's term.": (
                always
            ),
            "The start is not chosen on test images; the code's is, on CIFAR-10.": always,
            "CIFAR is normalised as in its long-tail recipes, by deviations of 0.20, not 0.25.": (
                lambda run: run.data.source.mean == CIFAR_MEAN
            ),
            "Batch norm keeps its statistics; the code normalises by those of the batch.": always,
            "Partners come from pseudo-labels, as in the paper; the code uses the true labels.": (
                lambda run: run.partners == "unlabelled"
            ),
            "The number of steps is fixed; the code stops when the largest gain has settled.": (
                always
            ),
        },
    )
    stage = "fine-tune"

    multipliers: Tensor

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        init_from: Trained | None = None,
        objective: str = "min_recall",
        coverage_target: float = 0.95,
        policy: Literal["selmix", "uniform", "class_balanced", "greedy"] = "selmix",
        sharpness: float = 10.0,
        positive_only: bool = True,
        pair_smoothing: bool = True,
        count_smoothing: float = 0.5,
        partners: Literal["labelled", "unlabelled"] = "labelled",
        cycle: int = 50,
        min_share: float = 0.6,
        backbone: str | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=3e-4, weight_decay=5e-4),
        lr_schedule: LRSchedule | None = None,
        backbone_lr: float = 0.1,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if init_from is None:
            raise UserError(
                "SelMix fine-tunes a trained network: name its run with "
                "--model.init_from.path runs/...."
            )
        super().__init__(
            num_classes,
            in_chans,
            backbone=backbone,
            init_from=init_from,
            optimizer=optimizer,
            lr_schedule=lr_schedule or Cosine(),
            **kwargs,
        )
        if sharpness <= 0 or cycle < 1 or not 0 <= min_share <= 1 or count_smoothing < 0:
            raise UserError(
                f"sharpness {sharpness} must be above 0, cycle {cycle} at least 1, min_share "
                f"{min_share} in [0, 1] and count_smoothing {count_smoothing} at least 0."
            )
        self.held_out = HeldOut(objective, num_classes, coverage_target)
        self.monitor = self.held_out.monitor
        self.register_buffer("multipliers", self.held_out.objective.initial.clone())
        self.rule = BestResponse()
        self.policy = policy
        self.sharpness = sharpness
        self.positive_only = positive_only
        self.pair_smoothing = pair_smoothing
        self.count_smoothing = count_smoothing
        self.partners = partners
        self.cycle = cycle
        self.min_share = min_share
        self.backbone_lr = backbone_lr
        self.history = gain.GainHistory()
        self.level: float | None = None  # of the surrogate, with the multipliers of the last look
        self.looked = False
        self.report: dict[str, float] = {}  # by the last look, for the log

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        self.held_out.setup(self.data, self.class_counts)
        if self.partners == "unlabelled" and "unlabelled" not in self.data.splits:
            raise UserError(
                "partners: unlabelled needs unlabelled images: use SemiSupervisedDataModule, or "
                "partners: labelled."
            )
        self.sampler = PairSampler(
            self.data.splits["train"].labels,
            self.num_classes,
            self.cycle * self.data.batch_size,
            seeding.run_seed(),
        )

    @override
    def load_start(self) -> None:
        super().load_start()
        penultimate.linear_heads(self.net)
        for module in self.net.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)

    @override
    def streams(self, data: DataModule) -> Streams:
        partners = Stream("train" if self.partners == "labelled" else "unlabelled")
        images = Stream("train", {"image": data.augment})
        return Streams(self.sampler, {MAIN: images, "partner": partners})

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        rate = self.optimizer(self.net.parameters()).defaults["lr"]
        heads = [dict(head.named_parameters()) for head in penultimate.linear_heads(self.net)]
        classifier = {id(p) for head in heads for p in head.values()}
        others = [p for p in self.net.parameters() if p.requires_grad and id(p) not in classifier]
        biases = [head["bias"] for head in heads if "bias" in head]
        return [
            {"params": [head["weight"] for head in heads]},
            *([{"params": biases, "weight_decay": 0.0}] if biases else []),
            {"params": others, "lr": rate * self.backbone_lr},
        ]

    @override
    def on_fit_start(self) -> None:
        # A loader with workers draws pairs before an epoch starts.
        self._look()

    @override
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if not self.looked:
            self._look()
        self.looked = False
        rate = self._optimizer.param_groups[0]["lr"]
        self.history.begin(self.report["expected_gain"], rate, self.cycle)
        report = self.report | self.history.summary()
        self.log_dict({f"train/{name}": value for name, value in report.items()})
        self.traces |= {name: torch.tensor(report[name]) for name in TRACED if name in report}
        if change := self.history.last_change():
            self.traces["actual_vs_predicted_change"] = torch.tensor(change)
        self.net.eval()

    @torch.no_grad()
    def _look(self) -> None:
        self.agree_on(self.net)
        with evaluation_mode(self.net):
            counts, centroids = self._survey()
            labels = self._partner_labels()
        objective = self.held_out.objective
        look = self.held_out.look(counts, self.multipliers, self.rule, self.count_smoothing)
        if self.level is not None:
            self.history.actual.append(self._level(look.joint) - self.level)
        self.multipliers.copy_(look.multipliers)
        self.level = self._level(look.joint)
        slopes = objective.logit_gradient(look.smoothed, self.multipliers)
        gains = gain.pair_gains(
            centroids,
            *penultimate.linear_map(self.net),
            slopes / objective.scale(self.multipliers),
            (1 + self.min_share) / 2,
        )
        shares = self._shares(gains)
        available = torch.bincount(labels, minlength=self.num_classes) > 0
        shares = gain.without_empty(shares, available)
        self.sampler.draw_from(shares, labels)
        self.report |= {name: float(value) for name, value in look.report.items()}
        self.report |= {
            "positive_gains": float((gains > 0).double().mean()),
            "largest_gain": float(gains.max()),
            "mean_gain": float(gains.mean()),
            "expected_gain": float((shares * gains).sum()),
            "pair_entropy": float(torch.special.entr(shares).sum()),
            "classes_without_partners": float((~available).sum()),
        }
        if len(self.multipliers):
            self.traces["lambda"] = self.multipliers.clone()
        self.traces["first_shares"], self.traces["second_shares"] = shares.sum(1), shares.sum(0)
        if self.num_classes <= MOST_TRACED:
            self.traces["pair_shares"] = shares.float()
        self.looked = True

    def _survey(self) -> tuple[Tensor, Tensor]:
        """Return confusion counts (K, K) and centroids (K, d) of the validation images."""
        batches = self.data.evaluation_batches("val", self.device)
        with self.trainer.precision_plugin.forward_context():
            own = penultimate.class_statistics(self.net, batches, self.num_classes, self.device)
        counts, sums = map(self.summed, own)
        return counts, sums / counts.sum(1, keepdim=True)

    def _level(self, joint: Tensor) -> float:
        """Return the surrogate as gains see it, with the multipliers as they are."""
        objective = self.held_out.objective
        surrogate = objective.surrogate(*rates(joint), self.multipliers)
        return float(surrogate / objective.scale(self.multipliers))

    def _shares(self, gains: Tensor) -> Tensor:
        if self.policy != "selmix":
            return gain.CONTROLS[self.policy](gains)
        if not self.history.predicted and not (gains > 0).any():
            raise UserError(
                f"no pair of classes can raise {self.held_out.name}: the start is at its optimum "
                "on the validation images. Choose another objective, or validate on more images."
            )
        shares = gain.selective(gains, self.sharpness, self.positive_only)
        self.report["largest_share"] = float(shares.max())
        return gain.smooth(shares) if self.pair_smoothing else shares

    def _partner_labels(self) -> Tensor:
        """Return labels or pseudo-labels of the images that second images are drawn from."""
        data = self.data
        if not isinstance(data, SemiSupervisedDataModule) or self.partners == "labelled":
            return torch.from_numpy(data.splits["train"].labels).to(self.device)
        size = len(data.splits["unlabelled"].indices)
        labels = torch.zeros(size, dtype=torch.long, device=self.device)
        with self.trainer.precision_plugin.forward_context():
            for batch in data.evaluation_batches("unlabelled", self.device):
                labels[batch["index"]] = self(batch["image"]).argmax(1)
        labels = self.summed(labels)
        if data.oracle:
            right = labels == data.oracle_labels().to(self.device)
            self.report["pseudo_label_accuracy"] = float(right.double().mean())
        return labels

    @override
    def prepare_step(self, batch: dict[str, Any]) -> Batch:
        labels = batch["label"]
        draws = torch.rand(len(labels), 1, device=labels.device)
        share = self.min_share + (1 - self.min_share) * draws
        images = {"first": batch["image"], "second": batch["partner"]["image"]}
        return {**images, "label": labels, "share": share}

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        pairs = torch.cat([batch["first"], batch["second"]])
        one, other = penultimate.features(self.net, pairs).chunk(2)
        logits = penultimate.classify(self.net, other.lerp(one, batch["share"].to(one.dtype)))
        return cross_entropy_loss(logits, batch["label"], self.class_counts)

    @override
    def warnings(self, logged: Mapping[str, Tensor]) -> dict[str, str]:
        share = float(logged.get("train/largest_share", 0))
        if share <= ONE_PAIR:
            return {}
        return {
            "pairs": f"{share:.1%} of the pairs are of the same two classes, much like "
            "policy: greedy. A lower model.sharpness spreads them over more classes."
        }

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["selmix"] = {"history": asdict(self.history), "level": self.level}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.history = gain.GainHistory(**checkpoint["selmix"]["history"])
        self.level = checkpoint["selmix"]["level"]

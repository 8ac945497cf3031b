"""SelMix: fine-tune a trained run towards a metric, by mixing the pairs of classes that raise it.

An epoch is one cycle: a look at the validation images gives the confusion matrix and a centroid of
each class, these the gain of every pair of classes, and these the pairs that the epoch draws.
"""

from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench import seeding
from ltbench.data.base import DataModule
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.streams import MAIN, Stream, Streams
from ltbench.errors import UserError
from ltbench.losses import cross_entropy_loss
from ltbench.methods import stages
from ltbench.methods.base import Paper
from ltbench.methods.optimised import OptimisedModule
from ltbench.methods.selmix.gain import (
    CONTROLS,
    GainHistory,
    pair_gains,
    selective,
    smooth,
    without_empty,
)
from ltbench.methods.selmix.pairs import PairSampler
from ltbench.methods.stages import Trained
from ltbench.models import penultimate
from ltbench.objectives import (
    BestResponse,
    MultiplierRule,
    build_objective,
    joint_confusion,
    rates,
    zero_recall_classes,
)
from ltbench.optim.sam import batch_norm_frozen
from ltbench.optim.schedules import Cosine, LRSchedule

TRACED = ("objective", "positive_gains", "pseudo_label_accuracy")
MOST_TRACED = 100  # classes up to which the record keeps the share of every pair


class Prepared(NamedTuple):
    """The pairs of a step: first and second images; labels and weights of the first."""

    first: Tensor
    second: Tensor
    labels: Tensor
    share: Tensor


class SelMix(OptimisedModule):
    """Fine-tune a trained network on mixtures of the class pairs that raise an objective.

    Args:
        num_classes: Number of classes; the command line takes it from the data.
        in_chans: Number of image channels; the command line takes it from the data.
        init_from: The run, checkpoint or timm network to start from.
        objective: A name in :data:`ltbench.objectives.OBJECTIVES`.
        coverage_target: Least coverage as a share of 1/K, for objectives that constrain it.
        multiplier_rule: How the objective's multipliers follow the validation images; default:
            ``BestResponse``.
        policy: ``selmix``, or a control: ``uniform`` pairs, ``class_balanced`` pairs of a class
            with itself, or the pair with the largest gain alone (``greedy``).
        sharpness: s in softmax(s G); its effect depends on the scale of the features.
        positive_only: Whether pairs without a gain are left out.
        pair_smoothing: Whether all pairs get 1/K^3 more, which softens ``positive_only``.
        count_smoothing: Added to each entry of the confusion counts for the derivatives.
        partners: Where second images come from: the labelled ones, or the unlabelled ones by their
            pseudo-labels, which every cycle renews.
        cycle: Steps between two looks at the validation images: the length of an epoch.
        min_share: Least weight of the first image; weights are uniform between it and 1.
        optimizer: Any torch or timm optimizer; its learning rate is that of the classifier.
        lr_schedule: Factor on the learning rate; default: ``Cosine``.
        backbone_lr: Learning rate of the backbone over that of the classifier. The scale and shift
            of batch norm are not trained.
        clip_norm: Largest global norm of the descent gradient; default: no clipping.
        on_bad_loss: What a loss that is not finite does: see ``OptimisedModule``.
        early_stop: Stop when the largest gain has settled.
        official_compat: Follow the published code where it differs from the paper.

    Raises:
        UserError: There is nothing to start from, or an argument is out of its range.
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
        deviations=(
            "The learning rate falls cycle by cycle, not step by step.",
            "Validation images are seen once; the code adds their mirror images.",
            "Derivatives are exact for every class prior; the code assumes a uniform one.",
            "The gain is exact; the code takes <z_i, z_k> for <z_ij, z_k> in the label's term.",
            "Batch norm keeps its statistics; the code normalises by those of the batch.",
            "Partners come from pseudo-labels, as in the paper; the code uses the true labels.",
            "The number of steps is fixed; the code stops when the largest gain has settled.",
        ),
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
        multiplier_rule: MultiplierRule | None = None,
        policy: Literal["selmix", "uniform", "class_balanced", "greedy"] = "selmix",
        sharpness: float = 10.0,
        positive_only: bool = True,
        pair_smoothing: bool = True,
        count_smoothing: float = 0.5,
        partners: Literal["labelled", "unlabelled"] = "labelled",
        cycle: int = 50,
        min_share: float = 0.6,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=3e-4, weight_decay=5e-4),
        lr_schedule: LRSchedule | None = None,
        backbone_lr: float = 0.1,
        clip_norm: float | None = None,
        on_bad_loss: Literal["error", "skip"] = "error",
        early_stop: bool = False,
        official_compat: bool = False,
    ) -> None:
        """Check the arguments; the network is loaded when training needs it."""
        super().__init__(
            num_classes,
            in_chans,
            optimizer=optimizer,
            lr_schedule=lr_schedule or Cosine(),
            clip_norm=clip_norm,
            on_bad_loss=on_bad_loss,
        )
        if init_from is None:
            raise UserError(
                "SelMix fine-tunes a trained network: name its run with "
                "--model.init_from.path runs/...."
            )
        if sharpness <= 0 or cycle < 1 or not 0 <= min_share <= 1 or count_smoothing < 0:
            raise UserError(
                f"sharpness {sharpness} must be above 0, cycle {cycle} at least 1, min_share "
                f"{min_share} in [0, 1] and count_smoothing {count_smoothing} at least 0."
            )
        self.in_chans = in_chans
        self.starts = {"init_from": init_from}
        self.objective_name = objective
        self.coverage_target = coverage_target
        # Built again in setup, where the training images say what head and tail are.
        self.objective = build_objective(objective, torch.ones(num_classes), coverage_target)
        self.monitor = f"val/{objective.removesuffix('_coverage').removesuffix('_ht')}"
        self.register_buffer("multipliers", self.objective.initial.clone())
        self.rule = multiplier_rule or BestResponse()
        self.policy = policy
        self.sharpness = sharpness
        self.positive_only = positive_only
        self.pair_smoothing = pair_smoothing
        self.count_smoothing = count_smoothing
        self.partners = partners
        self.cycle = cycle
        self.min_share = min_share
        self.backbone_lr = backbone_lr
        self.early_stop = early_stop or official_compat
        self.official_compat = official_compat
        self.history = GainHistory()
        self.level: float | None = None  # of the surrogate, with the multipliers of the last look
        self.looked = False
        self.found: dict[str, float] = {}  # by the last look, for the log

    @property
    def deviations(self) -> list[str]:
        """Those of the paper's card that this run has."""
        rate, mirrored, prior, gain, batch_norm, partners, steps = self.paper.deviations
        found = [rate, mirrored]
        # On the balanced validation set that the code needs, its derivatives are the exact ones.
        found += [] if self.official_compat else [prior, gain, batch_norm]
        if self.partners == "unlabelled" and not self.official_compat:
            found.append(partners)
        return found if self.early_stop else [*found, steps]

    def build(self, network: dict[str, Any]) -> None:
        """Wait: the network is that of the start, or of a checkpoint."""

    def setup(self, stage: str) -> None:
        """Load the start, and let the data draw pairs."""
        super().setup(stage)
        if stage != "fit":
            return
        if "val" not in self.data.splits:
            raise UserError(
                "SelMix looks at validation images, and this data has none: hold some out "
                "(data.val_fraction, or a val folder), as the run that it starts from did."
            )
        labels = torch.from_numpy(self.data.splits["val"].labels)
        held_out = torch.bincount(labels, minlength=self.num_classes)
        # It refuses a set in which a class is missing.
        joint_confusion(held_out.diag(), class_names=self.data.source.class_names)
        if self.official_compat and held_out.min() < held_out.max():
            raise UserError(
                "official_compat: the published code takes as many validation images of each class "
                f"for granted; this data has {held_out.min()} to {held_out.max()}."
            )
        self.objective = build_objective(
            self.objective_name, self.class_counts, self.coverage_target
        )
        self._load_start()
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

    def _load_start(self) -> None:
        start = stages.load(
            self.starts["init_from"], self.num_classes, self.in_chans, role="init_from"
        )
        start.require_same_data(self.data.identity())
        penultimate.linear_heads(start.network)
        self.network = {**start.spec, "pretrained": False}
        self.net = start.network.train().requires_grad_()
        self.net.to(memory_format=torch.channels_last)
        for module in self.net.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self.lineage = [start.lineage]

    def streams(self, data: DataModule) -> Streams:
        """Return the training images, each with a partner, which the sampler pairs by class."""
        partners = Stream("train" if self.partners == "labelled" else "unlabelled")
        images = Stream("train", {"image": data.augment})
        return Streams(self.sampler, {MAIN: images, "partner": partners})

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, in_chans, H, W)."""
        return penultimate.classify(self.net, penultimate.features(self.net, images))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return classifier, its bias without weight decay, and backbone at its own rate."""
        rate = self.optimizer(self.net.parameters()).defaults["lr"]
        heads = [dict(head.named_parameters()) for head in penultimate.linear_heads(self.net)]
        ours = {id(p) for head in heads for p in head.values()}
        others = [p for p in self.net.parameters() if p.requires_grad and id(p) not in ours]
        biases = [head["bias"] for head in heads if "bias" in head]
        return [
            {"params": [head["weight"] for head in heads]},
            *([{"params": biases, "weight_decay": 0.0}] if biases else []),
            {"params": others, "lr": rate * self.backbone_lr},
        ]

    def on_fit_start(self) -> None:
        """Look for the first time: a loader with workers draws pairs before an epoch starts."""
        self._look()

    def on_train_epoch_start(self) -> None:
        """Look at the validation images, and say what was found."""
        super().on_train_epoch_start()
        if not self.looked:
            self._look()
        self.looked = False
        rate = self._optimizer.param_groups[0]["lr"]
        self.history.begin(self.found["expected_gain"], rate, self.cycle)
        found = self.found | self.history.summary()
        self.log_dict({f"train/{name}": value for name, value in found.items()})
        self.traces |= {name: torch.tensor(found[name]) for name in TRACED if name in found}
        if change := self.history.last_change():
            self.traces["actual_vs_predicted_change"] = torch.tensor(change)
        if self.early_stop and self.history.settled():
            self.trainer.should_stop = True
        self.net.train(self.official_compat)

    @torch.no_grad()
    def _look(self) -> None:
        """Find the shares of the pairs from the validation images."""
        self.agree_on(self.net)
        self.net.eval()
        counts, centroids = self._survey()
        joint, smoothed = joint_confusion(counts), joint_confusion(counts, self.count_smoothing)
        if self.level is not None:
            self.history.actual.append(self._level(joint) - self.level)
        self.multipliers.copy_(self.objective.update(self.multipliers, joint, self.rule))
        self.level = self._level(joint)
        slopes = self.objective.logit_gradient(smoothed, self.multipliers)
        gains = pair_gains(
            centroids,
            *penultimate.linear_map(self.net),
            slopes / self.objective.scale(self.multipliers),
            (1 + self.min_share) / 2,
            published_code=self.official_compat,
        )
        self.history.largest.append(float(gains.max()))
        shares, labels = self._shares(gains), self._partner_labels()
        available = torch.bincount(labels, minlength=self.num_classes) > 0
        shares = without_empty(shares, available)
        self.sampler.draw_from(shares, labels)
        self.found |= {
            "objective": float(self.objective.value(joint)),
            "violation": float(self.objective.violation(joint)),
            "zero_recall_classes": float(zero_recall_classes(counts)),
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
        self.net.train()
        self.looked = True

    def _survey(self) -> tuple[Tensor, Tensor]:
        """Return confusion counts (K, K) and centroids (K, d) of the validation images."""
        batches = self.data.evaluation_batches("val", self.device)
        with self.trainer.precision_plugin.forward_context():
            found = penultimate.class_statistics(self.net, batches, self.num_classes, self.device)
        counts, sums = (self.trainer.strategy.reduce(part, reduce_op="sum") for part in found)
        return counts, sums / counts.sum(1, keepdim=True)

    def _level(self, joint: Tensor) -> float:
        """Return the surrogate as gains see it, with the multipliers as they are."""
        surrogate = self.objective.surrogate(*rates(joint), self.multipliers)
        return float(surrogate / self.objective.scale(self.multipliers))

    def _shares(self, gains: Tensor) -> Tensor:
        if self.policy != "selmix":
            return CONTROLS[self.policy](gains)
        if not self.history.predicted and not (gains > 0).any():
            raise UserError(
                f"no pair of classes can raise {self.objective_name}: on the validation images the "
                "start is at its optimum already. Choose another objective, or validate on more."
            )
        shares = selective(gains, self.sharpness, self.positive_only)
        self.found["largest_share"] = float(shares.max())
        return smooth(shares) if self.pair_smoothing else shares

    def _partner_labels(self) -> Tensor:
        """Return labels or pseudo-labels of the images that second images are drawn from."""
        data = self.data
        if not isinstance(data, SemiSupervisedDataModule) or self.partners == "labelled":
            return torch.from_numpy(data.splits["train"].labels).to(self.device)
        if self.official_compat:
            return data.oracle_labels().to(self.device)
        size = len(data.splits["unlabelled"].indices)
        labels = torch.zeros(size, dtype=torch.long, device=self.device)
        with self.trainer.precision_plugin.forward_context():
            for batch in data.evaluation_batches("unlabelled", self.device):
                labels[batch["index"]] = self(batch["image"]).argmax(1)
        labels = self.trainer.strategy.reduce(labels, reduce_op="sum")
        if data.oracle:
            right = labels == data.oracle_labels().to(self.device)
            self.found["pseudo_label_accuracy"] = float(right.double().mean())
        return labels

    def prepare_step(self, batch: dict[str, Any]) -> Prepared:
        """Draw the weight of each first image."""
        labels = batch["label"]
        draws = torch.rand(len(labels), 1, device=labels.device)
        images = batch["image"], batch["partner"]["image"]
        return Prepared(*images, labels, self.min_share + (1 - self.min_share) * draws)

    def loss_of(self, prepared: Prepared, part: slice) -> Tensor:
        """Return the cross-entropy of the mixed features with the label of the first image."""
        first, second = prepared.first[part], prepared.second[part]
        if self.official_compat:
            with batch_norm_frozen(self.net):
                one = penultimate.features(self.net, first)
                other = penultimate.features(self.net, second)
        else:
            one, other = penultimate.features(self.net, torch.cat([first, second])).chunk(2)
        logits = penultimate.classify(self.net, other.lerp(one, prepared.share[part].to(one.dtype)))
        return cross_entropy_loss(logits, prepared.labels[part], self.class_counts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the next look compares itself with."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["selmix"] = {"history": asdict(self.history), "level": self.level}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from it; a run that is only evaluated takes its network from it."""
        super().on_load_checkpoint(checkpoint)
        self.history = GainHistory(**checkpoint["selmix"]["history"])
        self.level = checkpoint["selmix"]["level"]
        if not self.network:
            self.network = checkpoint["ltbench_network"]
            super().build(self.network)

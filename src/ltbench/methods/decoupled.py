"""Decoupled classifiers: a finished run's features stay, its head is scaled, set or re-trained.

Class re-training (cRT), the first of the paper's ways, is a config of ``erm``: ``init_from`` with
``head_init: random``, ``trainable: head`` and a class-balanced sampler. Where batches are not
augmented, features are computed once for all heads of a run
(:class:`~ltbench.methods.parts.features.FrozenFeatures`).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ltbench.corrections import TAUS, logit_adjusted, tau_normalised, tune
from ltbench.data.base import DataModule
from ltbench.data.datasets import Batch, Images
from ltbench.errors import UserError
from ltbench.losses import check_counts
from ltbench.methods.base import Paper
from ltbench.methods.optimised import OptimisedModule
from ltbench.methods.parts.stages import Trained
from ltbench.methods.parts.start import HeadInit, class_means
from ltbench.models import penultimate
from ltbench.optim.step import Step


def scaled_logits(
    features: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return logits (B, C) z_c = s_c (w_c . f), or s_c (w_c . f + b_c).

    Source: Kang et al., arXiv 1910.09217, section 4.1, in the form of its released code; with a
    bias Zhong et al., arXiv 2104.00466.

    Args:
        features: (B, d).
        weight: Class vectors (C, d).
        scales: One per class, (C,).
        bias: One per class, (C,); None: 0.
    """
    return scales * F.linear(features, weight, bias)


def nearest_mean(means: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Return weight (C, d) and bias (C,) of a linear map that is largest for the nearest mean.

    Source: Kang et al., arXiv 1910.09217, section 4.1 (NCM).

    Args:
        means: Class means (C, d).
        metric: ``cosine``: m_c / |m_c|, no bias; ``euclidean``: m_c and -|m_c|^2 / 2, since |f -
            m_c|^2 = |f|^2 - 2 (m_c . f - |m_c|^2 / 2).
    """
    if metric == "cosine":
        return F.normalize(means), means.new_zeros(len(means))
    return means, -means.square().sum(1) / 2


class Decoupled(OptimisedModule):
    """Base of the methods that change nothing but the linear head of a finished run.

    Of several heads each is changed.

    Args:
        init_from: The finished run.
        backbone: Its network; default: what the run says.
        **kwargs: The rest of :class:`~ltbench.methods.optimised.OptimisedModule`.

    Raises:
        UserError: There is no ``init_from``, or the head of its network is not linear.
    """

    paper = Paper(
        title="Decoupling Representation and Classifier for Long-Tailed Recognition",
        venue="ICLR 2020",
        arxiv="1910.09217",
        equations={
            "tau-normalisation (section 4.1)": "ltbench.corrections.tau_normalised",
            "learnable weight scaling (section 4.1)": "ltbench.methods.decoupled.scaled_logits",
            "nearest class mean (section 4.1)": "ltbench.methods.decoupled.nearest_mean",
            "logit adjustment (2007.07314, eq. 9)": "ltbench.corrections.logit_adjusted",
        },
        deviations={
            "The last epoch is reported; the published code reports the best epoch on test.": (
                lambda run: isinstance(run, LWS)
            ),
            "tau is the smallest with the best mean recall on validation images, by tenths.": (
                lambda run: getattr(run, "tau", 0) is None
            ),
            "Class means are of features as they are; the published code also centres them.": (
                lambda run: isinstance(run, ClassMeans)
            ),
        },
    )

    begins_with: ClassVar[HeadInit] = "own"

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        init_from: Trained | None = None,
        backbone: str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if init_from is None:
            raise UserError(
                f"{type(self).__name__} needs a trained network: name its run with "
                "model.init_from.path."
            )
        super().__init__(
            num_classes,
            in_chans,
            backbone=backbone,
            init_from=init_from,
            head_init=self.begins_with,
            trainable="head",
            **kwargs,
        )
        self.reads_features = True

    @override
    def build(self, network: dict[str, Any]) -> None:
        super().build(network)
        penultimate.linear_heads(self.net)  # refuses others

    @torch.no_grad()
    def set_head(self, head: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
        """Give a head its class vectors (C, d) and its bias (C,); None: 0.

        Raises:
            UserError: There is a bias, and the head has no place for it.
        """
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(torch.zeros_like(head.bias) if bias is None else bias)
        elif bias is not None:
            raise UserError(
                f"{type(self).__name__} needs a bias, and the classifier of the network has none: "
                "take a network whose classifier has one."
            )

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.outputs_of(batch)[""], batch["label"])


class LWS(Decoupled):
    """Learnable weight scaling: the class vectors stay, one scale for each is learned.

    The bias of the head is dropped. The head of ``self.net`` has the scaled vectors after every
    step, so that whatever evaluates, analyses or starts from the network sees an ordinary one.

    Args:
        **kwargs: Of :class:`Decoupled`.
    """

    with_bias: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_classes, in_chans, **kwargs)
        self.trainable = []  # nothing of the network

    @override
    def build(self, network: dict[str, Any]) -> None:
        super().build(network)
        heads = penultimate.linear_heads(self.net)
        self.scales = nn.Parameter(torch.ones(len(heads), self.num_classes))
        self.class_vectors = nn.ParameterList(head.weight.detach().clone() for head in heads)
        self.class_vectors.requires_grad_(False)

    def biases(self) -> Sequence[Tensor | None]:
        """Return the bias (C,) of each head before it is scaled."""
        return [None] * len(self.scales)

    @override
    def load_start(self) -> None:
        super().load_start()
        self.take_heads()
        self.scale_heads()

    @torch.no_grad()
    def take_heads(self) -> None:
        """Begin with the heads of the start."""
        for vectors, head in zip(
            self.class_vectors, penultimate.linear_heads(self.net), strict=True
        ):
            vectors.copy_(head.weight)

    def scale_heads(self) -> None:
        """Bring the heads of the network up to the scales."""
        heads = penultimate.linear_heads(self.net)
        parts = zip(heads, self.scales.detach(), self.class_vectors, self.biases(), strict=True)
        for head, scales, vectors, bias in parts:
            self.set_head(
                head, scales[:, None] * vectors.detach(), None if bias is None else scales * bias
            )

    def logits_of(self, batch: Batch) -> Tensor:
        """Return the prediction's logits (B, C), as a function of what is learned."""
        seen = batch.get("features")
        seen = penultimate.features(self.net, batch["image"]) if seen is None else seen
        features = penultimate.by_head(self.net, seen).values()
        parts = zip(features, self.class_vectors, self.scales, self.biases(), strict=True)
        return torch.stack([scaled_logits(*part) for part in parts]).mean(0)

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits_of(batch), batch["label"])

    @override
    def after_step(self, step: Step) -> None:
        self.scale_heads()


class SetHead(Decoupled):
    """Base of heads that are set as a run begins. A step learns nothing, so one step is enough.

    Args:
        init_from: See :class:`Decoupled`.
        backbone: See there.
        backbone_args: Further arguments of ``timm.create_model``.
        head: Of the backbone that is named; ``cosine`` is refused.
    """

    @override
    def load_start(self) -> None:
        super().load_start()
        self.set_heads()

    @abstractmethod
    def set_heads(self) -> None:
        """Set the heads of ``self.net``, which are those of the start or its class means."""

    @override
    def images(self, data: DataModule, split: str) -> Images:
        if split == "train":  # one step of them; features of all would be for nothing
            return data.dataset(split)
        return super().images(data, split)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            loss = self.loss_of(batch)
        self.bad_step.watch(loss, batch_idx, batch["index"])
        size = len(batch["label"])
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=size)
        for name, constant in self.constants().items():
            # Not as a number: Lightning would copy it to the device and wait.
            value = torch.as_tensor(constant)
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=size)

    def constants(self) -> dict[str, float]:
        """Return what the heads were set with, for the training curves."""
        return {}

    @override
    def on_train_epoch_end(self) -> None:
        self._require_finite_loss()  # there is no schedule to move on


class ClassMeans(SetHead):
    """Nearest class mean (NCM): each image gets the class whose mean of features is nearest.

    Args:
        metric: ``cosine`` or ``euclidean``.
        init_from: See :class:`Decoupled`; its classes may be others, and its head of any kind.
        backbone: See there.
        backbone_args: Further arguments of ``timm.create_model``.
    """

    begins_with = "class_means"

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        metric: Literal["cosine", "euclidean"] = "cosine",
        init_from: Trained | None = None,
        backbone: str | None = None,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            in_chans,
            init_from,
            backbone,
            backbone_args=backbone_args,
        )
        self.metric = metric

    @override
    def set_heads(self) -> None:
        assert self.frozen is not None
        labels = torch.from_numpy(self.data.splits["train"].labels)
        means = class_means(self.frozen.of("train"), labels, self.num_classes)
        heads = penultimate.classifiers(self.net)
        for name, part in penultimate.by_head(self.net, means).items():
            weight, bias = nearest_mean(part, self.metric)
            self.set_head(heads[name], weight, bias if self.metric == "euclidean" else None)


class Tuned(SetHead):
    """Base of heads that are corrected by a constant, tau, chosen on validation images.

    Args:
        tau: At least 0, which changes nothing; default: that of :data:`ltbench.corrections.TAUS`
            with the best mean recall on the validation images, of equals the smallest.
        init_from: See :class:`Decoupled`.
        backbone: See there.
        backbone_args: Further arguments of ``timm.create_model``.
        head: Of the backbone that is named; ``cosine`` is refused.

    Raises:
        UserError: ``tau`` is negative, or left out where there are no validation images.
    """

    correction: ClassVar[str]  # a key of TAUS

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        tau: float | None = None,
        init_from: Trained | None = None,
        backbone: str | None = None,
        backbone_args: dict[str, Any] | None = None,
        head: Literal["linear", "cosine"] = "linear",
    ) -> None:
        super().__init__(
            num_classes, in_chans, init_from, backbone, backbone_args=backbone_args, head=head
        )
        if tau is not None and not 0 <= tau < float("inf"):
            raise UserError(f"tau is {tau}; it must be a number, at least 0.")
        self.tau = tau

    @abstractmethod
    def corrected(self, head: nn.Linear, tau: float) -> tuple[Tensor, Tensor | None]:
        """Return weight (C, d) and bias (C,) of a head of the start after the correction."""

    @override
    def set_heads(self) -> None:
        self.used_tau = self.best_tau() if self.tau is None else self.tau
        for head in penultimate.linear_heads(self.net):
            self.set_head(head, *self.corrected(head, self.used_tau))

    @override
    def constants(self) -> dict[str, float]:
        return {"tau": self.used_tau}

    @torch.no_grad()
    def best_tau(self) -> float:
        """Return the tau with the best mean recall on the validation images, of equals the first.

        Raises:
            UserError: There are no validation images.
        """
        if "val" not in self.data.splits:
            raise UserError(
                "tau is chosen on validation images, and this data has none: give model.tau, or "
                "hold some out (data.val_fraction) in this run and in the one it starts from."
            )
        assert self.frozen is not None
        features = torch.split(self.frozen.of("val"), 4096)
        labels = torch.from_numpy(self.data.splits["val"].labels)
        heads = penultimate.linear_heads(self.net.cpu())
        taus = TAUS[self.correction]
        hits = torch.zeros(len(taus), self.num_classes, dtype=torch.long)
        for tau, row in zip(taus, hits, strict=True):
            parts = [self.corrected(head, float(tau)) for head in heads]
            for some, label in zip(features, torch.split(labels, 4096), strict=True):
                seen = zip(penultimate.by_head(self.net, some).values(), parts, strict=True)
                logits = torch.stack([F.linear(part, *head) for part, head in seen]).mean(0)
                right = label[logits.argmax(1) == label]
                row += right.bincount(minlength=self.num_classes)
        images = labels.bincount(minlength=self.num_classes)
        recalls = hits[:, images > 0] / images[images > 0]
        return tune(recalls.mean(1).numpy(), taus)


class TauNormalisation(Tuned):
    """tau-normalisation: the norms of the class vectors are shrunk or evened out; no bias.

    Args:
        tau: 0 leaves the norms, 1 makes all of them 1; default: see :class:`Tuned`.
        init_from: See :class:`Decoupled`.
        backbone: See there.
        backbone_args: Further arguments of ``timm.create_model``.
        head: Of the backbone that is named; ``cosine`` is refused.
    """

    correction = "tau-normalisation"

    @override
    def corrected(self, head: nn.Linear, tau: float) -> tuple[Tensor, None]:
        norms = head.weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return tau_normalised(head.weight, norms, tau), None


class LogitAdjustment(Tuned):
    """Logit adjustment after training: the classifier's bias loses tau log pi.

    Source: Menon et al., arXiv 2007.07314, section 4.1.

    Args:
        tau: 0 changes nothing, 1 suits a test set with equal shares; default: see :class:`Tuned`.
        init_from: See :class:`Decoupled`.
        backbone: See there.
        backbone_args: Further arguments of ``timm.create_model``.
        head: Of the backbone that is named; ``cosine`` is refused.
    """

    correction = "logit adjustment"

    @override
    def corrected(self, head: nn.Linear, tau: float) -> tuple[Tensor, Tensor]:
        counts = torch.from_numpy(self.data.class_counts)
        check_counts(counts)
        log_prior = (counts / counts.sum()).log().to(head.weight.device)
        bias = head.weight.new_zeros(len(counts)) if head.bias is None else head.bias
        return head.weight, logit_adjusted(bias, log_prior, tau)

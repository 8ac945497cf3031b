"""Decoupled classifiers: a finished run's features stay, its head is scaled or normalised.

Class re-training (cRT), the third of the paper's ways, is a config of ``erm``: ``init_from`` with
``head_init: random`` and ``trainable: head``.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.methods.base import Paper, always
from ltbench.methods.optimised import OptimisedModule
from ltbench.methods.parts.stages import Trained
from ltbench.methods.parts.trainable import evaluation_mode
from ltbench.models import penultimate
from ltbench.optim.step import Step

TAUS = tuple(step / 10 for step in range(21))


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """Return class vectors w_c / |w_c|^tau: 0 leaves them as they are, 1 makes all as long.

    Source: Kang et al., arXiv 1910.09217, section 4.1.

    Args:
        weight: Class vectors (C, d).
        tau: Temperature, at least 0.
    """
    norms: Tensor = weight.norm(dim=1, keepdim=True)
    return weight / norms.clamp_min(1e-12) ** tau


def scaled_logits(features: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Return logits (B, C) z_c = s_c (w_c . f), without a bias.

    Source: Kang et al., arXiv 1910.09217, section 4.1, in the form of its released code.

    Args:
        features: (B, d).
        weight: Class vectors (C, d).
        scales: One per class, (C,).
    """
    return scales * F.linear(features, weight)


class Decoupled(OptimisedModule):
    """Base of the methods that change nothing but the linear head of a finished run.

    The bias of the head is dropped. Of several heads each is changed.

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
            "tau-normalisation (section 4.1)": "ltbench.methods.decoupled.tau_normalised",
            "learnable weight scaling (section 4.1)": "ltbench.methods.decoupled.scaled_logits",
        },
        deviations={
            "The last epoch is reported; the published code reports the best epoch.": always,
            "Class-balanced sampling draws a class for each image; the published code takes four "
            "images of a class in a row.": lambda run: isinstance(run, LWS),
            "tau is the smallest with the best mean recall on validation images, of 0 to 2 by "
            "tenths.": lambda run: getattr(run, "tau", 0) is None,
        },
    )

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
            head_init="own",
            trainable="head",
            **kwargs,
        )

    @override
    def build(self, network: dict[str, Any]) -> None:
        super().build(network)
        penultimate.linear_heads(self.net)  # refuses others

    @torch.no_grad()
    def set_heads(self, weights: Iterable[Tensor]) -> None:
        """Give each head its class vectors (C, d), and no bias."""
        for head, weight in zip(penultimate.linear_heads(self.net), weights, strict=True):
            head.weight.copy_(weight)
            if head.bias is not None:
                head.bias.zero_()

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch["image"]), batch["label"])


class LWS(Decoupled):
    """Learnable weight scaling: the class vectors stay, one scale for each is learned.

    The head of ``self.net`` has the scaled vectors after every step, so that whatever evaluates,
    analyses or starts from the network sees an ordinary one.

    Args:
        **kwargs: Of :class:`Decoupled`.
    """

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
        for k, head in enumerate(heads):
            self.register_buffer(f"class_vectors{k}", head.weight.detach().clone())

    @property
    def class_vectors(self) -> list[Tensor]:
        """Those of each head, (C, d), as the run begins with them."""
        return [self.get_buffer(f"class_vectors{k}") for k in range(len(self.scales))]

    @override
    def load_start(self) -> None:
        super().load_start()
        heads = penultimate.linear_heads(self.net)
        for vectors, head in zip(self.class_vectors, heads, strict=True):
            vectors.copy_(head.weight.detach())
        self.scale_heads()

    def scale_heads(self) -> None:
        """Bring the heads of the network up to the scales."""
        pairs = zip(self.scales.detach(), self.class_vectors, strict=True)
        self.set_heads(scales[:, None] * vectors for scales, vectors in pairs)

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        features = penultimate.head_features(self.net, batch["image"]).values()
        parts = zip(features, self.class_vectors, self.scales, strict=True)
        logits = torch.stack([scaled_logits(*part) for part in parts]).mean(0)
        return F.cross_entropy(logits, batch["label"])

    @override
    def after_step(self, step: Step) -> None:
        self.scale_heads()


class TauNormalisation(Decoupled):
    """tau-normalisation: the norms of the class vectors are shrunk or evened out, not learned.

    The head is set as a run begins; a step learns nothing, so one step is enough.

    Args:
        tau: 0 leaves the norms, 1 makes all of them 1; default: the one of 0, 0.1, ... 2 with the
            best mean recall on the validation images.
        init_from: See :class:`Decoupled`.
        backbone: See there.
        backbone_args: Further arguments of ``timm.create_model``.
        head: Of the backbone that is named; ``cosine`` is refused.

    Raises:
        UserError: ``tau`` is negative, or left out where there are no validation images.
    """

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
            raise UserError(f"tau is {tau}; it must be at least 0.")
        self.tau = tau

    @override
    def load_start(self) -> None:
        super().load_start()
        weights = [head.weight.detach().clone() for head in penultimate.linear_heads(self.net)]
        self.set_heads(weights)  # the bias goes first
        self.used_tau = self.best_tau(weights) if self.tau is None else self.tau
        self.set_heads(tau_normalised(weight, self.used_tau) for weight in weights)

    @torch.no_grad()
    def best_tau(self, weights: list[Tensor]) -> float:
        """Return the tau with the best mean recall on the validation images, of equals the first.

        Args:
            weights: Class vectors (C, d) of each head.

        Raises:
            UserError: There are no validation images.
        """
        data = self.data
        if "val" not in data.splits:
            raise UserError(
                "tau is chosen on validation images, and this data has none: give model.tau, or "
                "hold some out (data.val_fraction) in this run and in the one it starts from."
            )
        net, device = self.net.to(data.device), data.device
        candidates = [[tau_normalised(w.to(device), tau) for w in weights] for tau in TAUS]
        hits = torch.zeros(len(TAUS), self.num_classes, dtype=torch.long, device=device)
        images = hits.new_zeros(self.num_classes)
        with evaluation_mode(net):
            for batch in data.evaluation_batches("val", device):
                features, label = penultimate.features(net, batch["image"]), batch["label"]
                images.index_add_(0, label, torch.ones_like(label))
                for row, vectors in zip(hits, candidates, strict=True):
                    right = (features @ torch.cat(vectors, 1).T).argmax(1) == label
                    row.index_add_(0, label, right.long())
        hits, images = self.summed(hits), self.summed(images)
        recalls = hits[:, images > 0] / images[images > 0]
        return TAUS[int(recalls.mean(1).argmax())]

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            loss = self.loss_of(batch)
        self.bad_step.watch(loss, batch_idx, batch["index"])
        size = len(batch["label"])
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=size)
        # Not as a number: Lightning would copy it to the device and wait.
        tau = torch.as_tensor(self.used_tau)
        self.log("train/tau", tau, on_step=False, on_epoch=True, batch_size=size)

    @override
    def on_train_epoch_end(self) -> None:
        self._require_finite_loss()  # there is no schedule to move on

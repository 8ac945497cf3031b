"""PaCo: supervised contrastive learning with a learnt centre for each class beside the keys."""

import copy
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.data.streams import MAIN
from ltbench.errors import UserError
from ltbench.losses import vs_offsets
from ltbench.methods.base import Paper, always
from ltbench.methods.optimised import OptimisedModule
from ltbench.models.penultimate import classify, features, linear_heads
from ltbench.optim.schedules import LRSchedule, MultiStep
from ltbench.optim.step import Step


def paco_loss(
    class_logits: Tensor,
    similarities: Tensor,
    targets: Tensor,
    positive: Tensor,
    alpha: float = 0.05,
    beta: float = 1.0,
) -> Tensor:
    """Parametric contrastive loss: one softmax over classes and contrasted samples together.

    For an anchor of class y with positives P, the samples of its class, and p that softmax:
    -(beta log p_y + alpha sum_{k in P} log p_k) / (beta + alpha |P|), averaged over the anchors.

    Source: Cui et al., arXiv 2107.12028, section 3, in the form of its released code.

    Args:
        class_logits: (B, C) of the class centres, the log prior added.
        similarities: (B, A) with the contrasted samples, over the temperature; -inf takes one out.
        targets: (B,) int64 labels.
        positive: (B, A) bool, which samples are of the anchor's class; none that is taken out.
        alpha: Weight of a positive sample, at least 0.
        beta: Weight of the class centre, above 0.

    Returns:
        A scalar.
    """
    chances = torch.cat([class_logits, similarities], 1).float().log_softmax(1)
    centre = chances.gather(1, targets[:, None])[:, 0]
    samples = torch.where(positive, chances[:, class_logits.shape[1] :], 0.0).sum(1)
    losses = (beta * centre + alpha * samples) / (beta + alpha * positive.sum(1))
    return -losses.mean()


class KeyQueue(nn.Module):
    """The last keys and their labels, in a ring; places never filled have the label -1.

    Args:
        length: Number of keys, at least 1.
        dim: Length of a key.
    """

    keys: Tensor
    labels: Tensor
    place: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, dim))
        self.register_buffer("labels", torch.full((length,), -1))
        self.register_buffer("place", torch.tensor(0))

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the oldest keys by ``keys`` (n, dim) with ``labels`` (n,); of many, the last."""
        length = len(self.labels)
        keys, labels = keys[-length:], labels[-length:]
        places = (self.place + torch.arange(len(labels), device=labels.device)) % length
        self.keys[places] = keys.to(self.keys.dtype)
        self.labels[places] = labels
        self.place.add_(len(labels)).remainder_(length)


class PaCo(OptimisedModule):
    """Train class centres and a contrast with keys of a momentum encoder, in one softmax.

    The network sees one view of an image, its moving average the other (``data.views: {key: ...}``)
    and a projection, with batch norm, makes a query of the one and a key of the other. An anchor is
    contrasted with all other queries and all keys of the batch, of all ranks, and with a queue of
    earlier keys. The linear classifier holds the centres; in training the log prior is added to its
    logits, so that without it, at test time, it is balanced. Keys, queue and moving average belong
    to a step, not to a pass: SAM's two passes see the same.

    Args:
        alpha: Weight of a positive sample: 0.01 on CIFAR, 0.05 on ImageNet-LT and iNaturalist.
        beta: Weight of the class centre.
        temperature: Divisor of the similarities, above 0: 0.05 and 0.2.
        queue: Number of earlier keys: 1024 and 8192.
        dim: Length of queries and keys: 32 and 128.
        momentum: Share of the moving average that a step keeps, in [0, 1).
        optimizer: The recipe of CIFAR-100 by default, like the schedule.
        lr_schedule: Likewise.
        **kwargs: The rest of :class:`~ltbench.methods.optimised.OptimisedModule`.
    """

    paper = Paper(
        title="Parametric Contrastive Learning",
        venue="ICCV 2021",
        arxiv="2107.12028",
        equations={
            "parametric contrastive loss (section 3)": "ltbench.methods.paco.paco_loss",
            "queue and momentum encoder (1911.05722)": "ltbench.methods.paco.KeyQueue",
            "log prior on the centres' logits (2007.10740)": "ltbench.losses.vs_offsets",
        },
        deviations={
            "The queue starts empty, and places never filled are left out of the softmax.": always,
            "Queries and keys of all ranks are contrasted, so that ranks share one batch.": always,
        },
    )
    view: ClassVar[str] = "key"

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        alpha: float = 0.01,
        beta: float = 1.0,
        temperature: float = 0.05,
        queue: int = 1024,
        dim: int = 32,
        momentum: float = 0.999,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.05, momentum=0.9, weight_decay=5e-4
        ),
        lr_schedule: LRSchedule | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            num_classes,
            in_chans,
            optimizer=optimizer,
            lr_schedule=lr_schedule or MultiStep(0.025, [(0.8, 0.1), (0.9, 0.01)]),
            **kwargs,
        )
        if alpha < 0 or beta <= 0 or temperature <= 0:
            raise UserError("PaCo: alpha must be at least 0, beta and temperature above 0.")
        if queue < 1 or dim < 1 or not 0 <= momentum < 1:
            raise UserError("PaCo: queue and dim must be at least 1, momentum in [0, 1).")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.momentum = momentum
        if not self.network:
            raise UserError("PaCo builds copies of its network: name model.backbone.")
        heads = linear_heads(self.net)
        if not self.network.get("pretrained"):
            for head in heads:
                head.reset_parameters()  # the class centres start as torch's Linear does
        width = sum(head.in_features for head in heads)
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim)
        )
        self.key_net = copy.deepcopy(self.net).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.queue = KeyQueue(queue, dim)

    @override
    def setup(self, stage: str) -> None:
        # The keys' encoder begins as the queries'.
        super().setup(stage)
        self.key_net.load_state_dict(self.net.state_dict())
        if stage == "fit" and self.view not in self.data.streams().views_of(MAIN):
            raise UserError(
                f"PaCo needs a second view of each training image: data.views: {{{self.view}: "
                "[...]}, with the transforms that make it."
            )
        if stage == "fit" and self._last_batch() == 1:
            raise UserError(
                "PaCo's batch norm cannot take the one image that is left at the end of an epoch: "
                "set data.drop_last to true, or another data.batch_size."
            )

    def _last_batch(self) -> int:
        """Return how many images a rank has in the last batch of an epoch."""
        world = self.trainer.world_size
        each = self.data.batch_size // world
        images = -(-len(self.data.splits["train"].labels) // world)
        return each if self.data.drop_last else images % each or each

    @override
    def prepare_step(self, batch: Batch) -> Batch:
        with torch.no_grad():
            keys = self.key_projection(features(self.key_net, batch[self.view]))
            self.fresh = (self._gathered(F.normalize(keys.float())), self._gathered(batch["label"]))
        return batch

    @override
    def loss_of(self, batch: Batch) -> Tensor:
        labels = batch["label"]
        seen = features(self.net, batch["image"])
        logits = classify(self.net, seen).float() + vs_offsets(self.class_counts, 1)
        queries = F.normalize(self.projection(seen).float())
        queued = (self.queue.keys, self.queue.labels)
        sources = (self._gathered(queries), self._gathered(labels)), self.fresh, queued
        others, other_labels = (torch.cat(parts) for parts in zip(*sources, strict=True))
        # Not under autocast: the temperature would turn a rounding error into one 20 times larger.
        with torch.autocast(self.device.type, enabled=False):
            similarities = queries @ others.T / self.temperature
        itself = torch.arange(len(labels), device=self.device) + self.global_rank * len(labels)
        left_out = (other_labels < 0).expand_as(similarities)
        left_out = left_out.scatter(1, itself[:, None], True)
        return paco_loss(
            logits,
            similarities.masked_fill(left_out, -torch.inf),
            labels,
            (labels[:, None] == other_labels) & ~left_out,
            self.alpha,
            self.beta,
        )

    @override
    def after_step(self, step: Step) -> None:
        averages: list[Tensor] = [*self.key_net.parameters(), *self.key_projection.parameters()]
        weights: list[Tensor] = [*self.net.parameters(), *self.projection.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - self.momentum)
        self.queue.push(*self.fresh)

    def _gathered(self, values: Tensor) -> Tensor:
        """Put the (n, ...) values of all ranks one after another; gradients flow back to each."""
        gathered = self.all_gather(values, sync_grads=values.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *values.shape[1:])

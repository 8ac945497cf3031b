"""The mean loss over some images as a function of the parameters, and its second derivatives.

Sums run over batches, so memory does not depend on the number of images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltbench.analysis.second_order import second_order
from ltbench.analysis.subject import Rows, Subject
from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.losses import BoundLoss, cross_entropy_loss


@dataclass(frozen=True)
class MeanLoss:
    """A mean over images, batch by batch."""

    parameters: Sequence[Tensor]  # its arguments, P numbers in all
    batches: Callable[[], Iterable[Batch]]  # called for each pass over the images
    loss: Callable[[Batch], Tensor]  # mean loss of a batch, a scalar
    weight: Callable[[Batch], float]  # share of all images that a batch has

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(p.numel() for p in self.parameters)

    @torch.no_grad()
    def value(self) -> float:
        """Return the loss at the current parameters."""
        return sum(float(self.loss(batch)) * self.weight(batch) for batch in self.batches())

    def products(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian with vectors, (k, P) -> (k, P).

        Raises:
            UserError: torch cannot differentiate some part of the network twice.
        """
        total = torch.zeros_like(vectors)
        parts = [self._shaped(vector) for vector in vectors]
        with second_order(), torch.enable_grad():
            try:
                for batch in self.batches():
                    self._add_products(batch, parts, total)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                if "is not implemented" not in reason:
                    raise
                raise UserError(
                    f"torch has no second derivative of this network ({reason})."
                ) from error
        return total

    def _add_products(self, batch: Batch, parts: Sequence[list[Tensor]], total: Tensor) -> None:
        """Build the graph of a batch's gradient once, and differentiate it along each vector."""
        gradient = torch.autograd.grad(
            self.loss(batch) * self.weight(batch),
            self.parameters,
            create_graph=True,
            materialize_grads=True,
        )
        used = [i for i, slope in enumerate(gradient) if slope.requires_grad]
        for row, part in zip(total, parts, strict=True):
            product = torch.autograd.grad(
                [gradient[i] for i in used],
                self.parameters,
                [part[i] for i in used],
                retain_graph=True,
                materialize_grads=True,
            )
            row += torch.cat([p.reshape(-1) for p in product])

    @torch.no_grad()
    def move(self, along: Tensor) -> None:
        """Add a vector (P,) to the parameters, in place."""
        for parameter, step in zip(self.parameters, self._shaped(along), strict=True):
            parameter += step

    def _shaped(self, vector: Tensor) -> list[Tensor]:
        pieces = torch.split(vector, [p.numel() for p in self.parameters])
        return [v.view(p.shape) for v, p in zip(pieces, self.parameters, strict=True)]


def class_loss(
    subject: Subject,
    split: str,
    rows: Rows,
    kind: str = "ce",
    batch_size: int = 64,
    advance: Callable[[int], object] = lambda images: None,
) -> MeanLoss:
    """Return the mean loss over some images of a split, as a function of all trained parameters.

    Class weights play no part: images of one class all have the same, which a weighted mean
    divides out.

    Args:
        subject: The network.
        split: Name of a split.
        rows: Which of its images.
        kind: ``ce``, plain cross-entropy, or ``run``, the loss that the run was trained with.
        batch_size: Images at a time.
        advance: Called with the number of images of each batch, to show progress.

    Raises:
        UserError: The run has no loss of logits and labels alone.
    """
    model, head = subject.model, subject.model.heads[0]
    own: BoundLoss | None = getattr(model, "loss", None)
    criterion = cross_entropy_loss if kind == "ce" else own
    if criterion is None:
        raise UserError(
            f"{type(model).__name__} has no loss of logits and labels alone: use --loss ce."
        )

    def loss(batch: Batch) -> Tensor:
        logits = model.outputs(batch["image"])[head]
        return criterion(logits, batch["label"], model.class_counts)

    def batches() -> Iterable[Batch]:
        for batch in subject.batches(split, rows, batch_size):
            yield batch
            advance(len(batch["label"]))

    parameters = [p for p in model.parameters() if p.requires_grad]
    return MeanLoss(parameters, batches, loss, lambda batch: len(batch["label"]) / len(rows))

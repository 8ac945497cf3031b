"""The regulariser of CBGAN (arXiv 2106.09402): classes made too rarely of late become cheaper.

A frozen classifier says of which class a generated image is.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.errors import UserError

_TINY = 1e-12  # a class of probability 0 adds 0, not NaN


def balance_weights(frequency: Tensor) -> Tensor:
    """w_k = K (1 / N_k) / sum_j (1 / N_j): they sum to the number of classes K.

    Args:
        frequency: Effective class frequencies N, shape (K,), positive.
    """
    inverse = 1 / frequency
    return inverse * (len(frequency) / inverse.sum())


def updated_frequency(frequency: Tensor, counts: Tensor, forgetting: float) -> Tensor:
    """N_k <- max(1, (1 - a) N_k + a h_k): exponential forgetting (arXiv 2106.09402).

    Args:
        frequency: N, shape (K,).
        counts: h, generated images per class since the last update, shape (K,).
        forgetting: a in [0, 1], the share of the old value that an update forgets.
    """
    return torch.lerp(frequency, counts, forgetting).clamp_min(1)


def balance_loss(probabilities: Tensor, weights: Tensor) -> Tensor:
    """R = sum_k w_k p_k ln p_k, minimal where the classes are balanced (2106.09402).

    Args:
        probabilities: Mean class probabilities p of a batch, shape (K,). The mean comes first:
            each image may be, and should be, of one class.
        weights: w, shape (K,), constant.
    """
    return (weights * probabilities * probabilities.clamp_min(_TINY).log()).sum()


class ClassBalance(nn.Module):
    """The regulariser with its state, which is the same on every rank and in the checkpoint.

    Of two classes the weighted loss would favour the frequent one, since its slope changes sign at
    p = 1/e; with fewer than three the weights stay 1.

    Args:
        num_classes: K.
        forgetting: Share of the old frequency that an update forgets, in (0, 1].
        start: Frequency of each class at the start, at least 1.
        pending: Count of each class at the start, which softens the first update.

    Attributes:
        frequency: (K,) float64 buffer, effective class frequency N.
        counts: (K,) float64 buffer, images of each predicted class since the last update, h.
        weights: (K,) float64 buffer, w.
    """

    frequency: Tensor
    counts: Tensor
    weights: Tensor

    def __init__(
        self, num_classes: int, forgetting: float = 0.5, start: float = 50, pending: float = 512
    ) -> None:
        super().__init__()
        if not 0 < forgetting <= 1:
            raise UserError(f"balance.forgetting is {forgetting}; it must lie in (0, 1].")
        if start < 1 or pending < 0:
            raise UserError("balance.start must be at least 1 and balance.pending at least 0.")
        self.num_classes = num_classes
        self.forgetting = forgetting
        ones = torch.ones(num_classes, dtype=torch.float64)
        self.register_buffer("frequency", start * ones)
        self.register_buffer("counts", pending * ones)
        self.register_buffer("weights", ones)

    def forward(self, logits: Tensor) -> Tensor:
        """Count a batch of generated images and return the loss R of it.

        Both the counts and the mean probabilities are those of the batches of all ranks, which
        must be equally large. The average over ranks of the gradients is then R's gradient.

        Args:
            logits: The classifier's, of this rank's generated images, shape (B, K).
        """
        logits = logits.float()
        with torch.no_grad():
            counts = F.one_hot(logits.argmax(1), self.num_classes).sum(0)
        mean = logits.softmax(1).mean(0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            # R of the mean is not the mean of R. The value is the mean over all ranks; this rank's
            # share of the gradient is what the average of the gradients over ranks needs.
            everywhere = mean.detach().clone()
            dist.all_reduce(everywhere)
            mean = mean + (everywhere / dist.get_world_size() - mean.detach())
        self.counts += counts
        return balance_loss(mean, self.weights.float())

    def update(self) -> None:
        """Update frequencies and weights by the counts, which start again at 0."""
        self.frequency.copy_(updated_frequency(self.frequency, self.counts, self.forgetting))
        self.counts.zero_()
        if self.num_classes > 2:
            self.weights.copy_(balance_weights(self.frequency))

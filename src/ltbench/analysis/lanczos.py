"""Spectra of symmetric operators that are known only by their products with vectors.

The Lanczos recurrence gives Ritz values (nodes) and, from a random start, the weights of a Gauss
quadrature of the spectral density: stochastic Lanczos quadrature, Ghorbani et al. 2019, arXiv
1901.10159; Yao et al. 2020, arXiv 1912.07145.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from ltbench import seeding

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Krylov:
    """What m Lanczos steps from one start reveal about an operator A."""

    diagonal: Values  # (m,) of the tridiagonal matrix T = Q A Q'
    off_diagonal: Values  # (m,); the last entry is the norm of what is left of A q_m, outside T
    basis: Tensor  # Q, (m, P), orthonormal rows, the first of which is the start

    @cached_property
    def _eigen(self) -> tuple[Values, Values]:
        values, vectors = eigh_tridiagonal(self.diagonal, self.off_diagonal[:-1])
        return np.asarray(values), np.asarray(vectors)

    @property
    def nodes(self) -> Values:
        """Ritz values, (m,), ascending; all lie within the spectrum of A."""
        return self._eigen[0]

    @property
    def weights(self) -> Values:
        """Share of the density at each node, (m,), summing to 1."""
        return np.asarray(self._eigen[1][0] ** 2)

    @property
    def errors(self) -> Values:
        """Bound on the distance of each node from the nearest eigenvalue of A, (m,)."""
        return np.asarray(abs(self.off_diagonal[-1] * self._eigen[1][-1]))

    def vector(self, node: int) -> Tensor:
        """Return the Ritz vector of a node, (P,), of length 1."""
        mix = torch.from_numpy(self._eigen[1][:, node]).to(self.basis)
        return mix @ self.basis


def lanczos(product: Callable[[Tensor], Tensor], starts: Tensor, steps: int) -> list[Krylov]:
    """Run the Lanczos recurrence from several starts at once, fully reorthogonalised.

    A start that spans an invariant subspace ends early: its nodes are eigenvalues then.

    Args:
        product: Maps vectors (k, P) to their products with A, (k, P).
        starts: (k, P), none of them zero; the recurrence has their precision.
        steps: m, at least 1; more than P have no effect.
    """
    count, size = starts.shape
    steps = min(steps, size)
    basis = starts.new_zeros(count, steps, size)
    diagonal, off_diagonal = np.zeros((2, count, steps))
    lengths = np.full(count, steps)
    current = starts / starts.norm(dim=1, keepdim=True)
    for step in range(steps):
        basis[:, step] = current
        image = product(current)
        diagonal[:, step] = (current * image).sum(1).tolist()
        known = basis[:, : step + 1]
        for _ in range(2):  # once leaves rounding errors in float32, twice is enough
            overlap = torch.bmm(known, image[:, :, None])
            image = image - torch.bmm(known.transpose(1, 2), overlap)[:, :, 0]
        left = image.norm(dim=1, keepdim=True)
        off_diagonal[:, step] = left[:, 0].tolist()
        scale = np.abs(np.concatenate([diagonal, off_diagonal], 1)).max(1)
        ended = off_diagonal[:, step] <= 100 * torch.finfo(starts.dtype).eps * scale
        lengths = np.where(ended, np.minimum(lengths, step + 1), lengths)
        if (lengths <= step + 1).all():
            break
        going = torch.from_numpy(lengths > step + 1).to(starts.device)[:, None]
        current = torch.where(going, image / left.clamp_min(torch.finfo(starts.dtype).tiny), 0)
    return [
        Krylov(diagonal[i, :m], off_diagonal[i, :m], basis[i, :m]) for i, m in enumerate(lengths)
    ]


def rademacher(size: int, seed: int, *key: int | str) -> Tensor:
    """Draw a vector of random signs, (size,) float32 on the CPU."""
    generator = seeding.generator("cpu", seed, *key)
    return torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1


def density(nodes: Sequence[Values], weights: Sequence[Values]) -> tuple[Values, Values]:
    """Smooth the quadratures of several starts, (m,) each, into one density of unit area.

    Each node is a Gaussian of variance 1e-5 max(1, range), as in the code of arXiv 1912.07145. The
    grid is finest around the nodes, which a uniform one would miss.

    Returns:
        The grid, (n,) ascending, and the density on it, (n,).
    """
    where = np.concatenate(list(nodes))
    share = np.concatenate(list(weights)) / len(nodes)
    span = max(1.0, float(np.ptp(where)))
    sigma = np.sqrt(1e-5 * span)
    around = (np.unique(where)[:, None] + sigma * np.linspace(-5, 5, 41)).ravel()
    even = np.linspace(where.min() - 5 * sigma, where.max() + 5 * sigma, 2001)
    grid = np.unique(np.concatenate([around, even]))
    total = np.zeros_like(grid)
    for node, weight in zip(where, share, strict=True):
        total += weight * np.exp(-((grid - node) ** 2) / (2 * sigma**2))
    return grid, total / (sigma * np.sqrt(2 * np.pi))

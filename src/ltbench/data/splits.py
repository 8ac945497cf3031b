"""Splits, and what divides a source into them: a long-tail profile, or a protocol."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltbench.data.sources.base import Source
from ltbench.errors import UserError


@dataclass(frozen=True)
class Split:
    """Some images of a source.

    Attributes:
        part: Split of the source that they are from.
        indices: (n,) their positions there.
        labels: (n,) their labels; -1 if these are hidden.
        hidden: Whether nothing may give the labels away: then ``index`` in a batch is not the
            position in the source but in this split, which is in random order.
    """

    part: str
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    hidden: bool = False

    @classmethod
    def of(cls, source: Source, part: str, indices: NDArray[np.int64] | None = None) -> Self:
        """Take images of a source; default: all of that part.

        Raises:
            UserError: There are no images.
        """
        labels = source.labels(part)
        indices = np.arange(len(labels)) if indices is None else indices
        if not len(indices):
            raise UserError(
                f"no {part} images found for {source.display_name} in {source.root}: add some, or "
                "remove that folder or list."
            )
        return cls(part, indices, labels[indices])

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Return label and index of these rows."""
        index = np.array(rows, dtype=np.int64) if self.hidden else self.indices[rows]
        return {"label": torch.from_numpy(self.labels[rows]), "index": torch.from_numpy(index)}


class Partition:
    """How a source is divided into ``train``, perhaps ``unlabelled``, ``val`` and ``test``."""

    def split(self, source: Source, seed: int) -> dict[str, Split]:
        """Divide a source, as a function of the source and ``seed`` alone.

        Raises:
            UserError: The source has too few images, or ``seed`` is out of range.
        """
        raise NotImplementedError

"""Corrections of a trained classifier that need no training, for arrays of numpy and torch alike.

A finished run's stored scores are corrected by them (``bench``), and so is its classifier
(``methods.decoupled``): the same equation, candidates and choice give the same predictions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any  # of numpy or torch

TAUS: Mapping[str, NDArray[np.float64]] = {
    "logit adjustment": np.linspace(0, 3, 31),
    "tau-normalisation": np.linspace(0, 2, 21),
}
"""Candidates for the constant of each correction; validation images choose one."""


def logit_adjusted(scores: Array, log_prior: Array, tau: float) -> Array:
    """Return logits, or a bias, less tau log pi: arXiv 2007.07314, eq. 9.

    Args:
        scores: Logits (N, C), or the bias (C,) of the classifier.
        log_prior: log pi, of the shares of the training images, (C,).
        tau: 0 changes nothing; 1 suits a test set with equal shares.
    """
    return scores - tau * log_prior


def tau_normalised(values: Array, norms: Array, tau: float) -> Array:
    """Return what is linear in class vectors w_c, for vectors w_c / |w_c|^tau.

    Source: Kang et al., arXiv 1910.09217, section 4.1.

    Args:
        values: The class vectors (C, d), or logits (N, C) without a bias.
        norms: |w_c|, in the shape (C, 1) or (C,).
        tau: 0 changes nothing, 1 makes all vectors as long.
    """
    return values / norms**tau


def tune(scores: Sequence[float] | NDArray[np.floating], candidates: NDArray[np.floating]) -> float:
    """Return the candidate with the best score; the first of equals."""
    return float(candidates[int(np.argmax(scores))])

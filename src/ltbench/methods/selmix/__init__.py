"""SelMix and its equations."""

from ltbench.methods.selmix.gain import pair_gains, selective, smooth
from ltbench.methods.selmix.method import SelMix

__all__ = ["SelMix", "pair_gains", "selective", "smooth"]

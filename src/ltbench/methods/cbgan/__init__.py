"""CBGAN and its equations."""

from ltbench.methods.cbgan.balance import balance_loss, updated_frequency
from ltbench.methods.cbgan.losses import hinge_loss, relativistic_loss
from ltbench.methods.cbgan.method import CBGAN

__all__ = ["CBGAN", "balance_loss", "hinge_loss", "relativistic_loss", "updated_frequency"]

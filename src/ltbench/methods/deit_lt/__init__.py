"""DeiT-LT and its equations."""

from ltbench.methods.deit_lt.distillation import (
    Teacher,
    drw_weights,
    hard_distillation_loss,
    soft_distillation_loss,
    weighted_mean,
)
from ltbench.methods.deit_lt.method import DeiTLT

__all__ = [
    "DeiTLT",
    "Teacher",
    "drw_weights",
    "hard_distillation_loss",
    "soft_distillation_loss",
    "weighted_mean",
]

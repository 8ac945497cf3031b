"""How weights move: gradient rules, schedules, weight averages, and a guard against bad steps."""

from ltbench.optim.sam import LPFSGD, PGD, SAM, GradientRule

__all__ = ["LPFSGD", "PGD", "SAM", "GradientRule"]

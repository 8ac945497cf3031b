"""How weights move: gradient rules, schedules, weight averages, and a guard against bad steps."""

from ltbench.optim.accumulation import MicroBatches
from ltbench.optim.sam import LPFSGD, PGD, SAM, GradientRule
from ltbench.optim.step import Step

__all__ = ["LPFSGD", "PGD", "SAM", "GradientRule", "MicroBatches", "Step"]

"""The methods: one LightningModule a file."""

from ltbench.methods.erm import ERM

__all__ = ["ERM"]

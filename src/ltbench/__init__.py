"""A benchmark suite for long-tailed recognition."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltbench.runs.experiment import build as build
    from ltbench.runs.finished import open_run as open_run

__version__ = "0.1.0"

_LATER = {"build": "ltbench.runs.experiment", "open_run": "ltbench.runs.finished"}


def __getattr__(name: str) -> object:
    """Import what needs torch when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'ltbench' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)

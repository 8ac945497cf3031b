"""Data = source x partition x streams. Importing this package does not import torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltbench.data.datamodule import LongTailDataModule
    from ltbench.data.subset import long_tailed

__all__ = ["LongTailDataModule", "long_tailed"]

_MODULES = {"LongTailDataModule": "datamodule", "long_tailed": "subset"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what a module holds can be anything
    """Import what is asked for, and torch with it, only now."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

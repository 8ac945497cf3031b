"""Data = source x profile x split. Importing this package does not import torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltbench.data.datamodule import LongTailDataModule

__all__ = ["LongTailDataModule"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what a module holds can be anything
    """Import the data module, and torch with it, only when it is asked for."""
    if name != "LongTailDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ltbench.data.datamodule import LongTailDataModule

    return LongTailDataModule

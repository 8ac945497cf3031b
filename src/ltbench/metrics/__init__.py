"""Long-tailed metrics, exact on any number of processes. Importing this package needs no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltbench.metrics.collector import LongTailMetrics

__all__ = ["LongTailMetrics"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what a module holds can be anything
    """Import the collector, and torch with it, only when it is asked for."""
    if name != "LongTailMetrics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ltbench.metrics.collector import LongTailMetrics

    return LongTailMetrics

"""What a leaderboard needs of a record: names and shapes, checked before anything is computed.

A shape is a function that says whether a value fits; a dict of names to the shapes of their values,
where ``?`` ends the name of what may be missing or null and ``*`` stands for every other name; or a
list of one shape, of each item.
"""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from ltbench.bench.score.measures import is_shown


def text(value: Any) -> bool:  # noqa: ANN401 - whatever JSON can hold
    """Say whether a value is a string without what a terminal would obey."""
    return isinstance(value, str) and not any(unicodedata.category(c) == "Cc" for c in value)


def number(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def recall(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a fraction, or null for a class without images."""
    return value is None or (number(value) and 0 <= value <= 1)


def metrics(value: Any) -> bool:  # noqa: ANN401
    """Say whether the metrics that are shown are numbers or null; a method may have others."""
    return isinstance(value, dict) and all(
        found is None or number(found) for name, found in value.items() if is_shown(name)
    )


RECORD: dict[str, Any] = {
    **{"name": text, "seed": count, "status": text, "images_seen": count, "wall_seconds": number},
    "config": {
        "model?": {"init_args?": {}},
        "data?": {"init_args?": {}},
        "trainer?": {},
    },
    "data": {
        **{"source": text, "index_hash": text},
        **{"class_names": [text], "class_counts": [count], "images": {"*": count}},
    },
    "metrics": {"*": {"test?": metrics, "val?": metrics}},
    "lineage?": [{"job_id?": text, "path?": text, "role?": text}],
    "versions?": {},
    "git?": {},
    "deviations?": [text],
    **dict.fromkeys(("job_id?", "method?", "dataset?", "stage?", "device?"), text),
    **dict.fromkeys(("images_per_second?", "peak_memory_bytes?", "parameters?"), number),
}


def misfit(value: Any, shape: Any, where: str = "") -> str | None:  # noqa: ANN401
    """Return the dotted name of the first part that has not its shape; None where all fits.

    Args:
        value: A record, or a part of one.
        shape: Its shape.
        where: Its name.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return where
        inner = ((f"{where}[{n}]", item, shape[0]) for n, item in enumerate(value))
    elif isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return where
        inner = _members(value, shape, f"{where}." if where else "")
    else:
        return None if shape(value) else where
    return next((found for part in inner if (found := misfit(part[1], part[2], part[0]))), None)


def _members(value: Mapping[str, Any], shape: Mapping[str, Any], prefix: str) -> Any:  # noqa: ANN401
    known = {name.removesuffix("?") for name in shape}
    for name, of_it in shape.items():
        key = name.removesuffix("?")
        if name == "*":
            yield from ((prefix + k, v, of_it) for k, v in value.items() if k not in known)
        elif key == name or value.get(key) is not None:
            yield prefix + key, value.get(key), of_it

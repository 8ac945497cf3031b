"""``record.json``: what is in it, how it is checked, written and read. There is no other place.

A shape is a function that says whether a value fits; or a dict from names to the shapes of their
values, where a name that ends in ``?`` may be missing or null and ``*`` stands for all others; or a
list of one shape, that of each item. Metrics are fractions in [0, 1]; an undefined one is null.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ltbench import untrusted
from ltbench.errors import UserError
from ltbench.records.files import plain, write_json
from ltbench.records.identity import canonical

Record = dict[str, Any]
"""Parts of :data:`RECORD` by name."""

SCHEMA = 1
MOST = 1e100


def text(value: Any) -> TypeGuard[str]:  # noqa: ANN401 - whatever JSON can hold
    """Say whether a value is a string without control characters."""
    return isinstance(value, str) and not any(unicodedata.category(c) == "Cc" for c in value)


def number(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a number that can be reckoned with: up to 1e100, so never infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def seconds(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a duration that can be written as days and hours."""
    return number(value) and 0 <= value < 1e12


def count(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a whole number, 0 or more, that 52 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**52


def counts(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a count, or a list of counts or of such lists."""
    return all(map(counts, value)) if isinstance(value, list) else count(value)


def metric(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value is a number or null, or a list of such, for example per class."""
    return all(map(metric, value)) if isinstance(value, list) else value is None or number(value)


RECORD: dict[str, Any] = {
    "schema": count,
    "job_id?": text,  # see identity
    "name": text,
    "method?": text,
    "dataset?": text,  # as `ltbench list datasets` names it
    "stage?": text,
    "lineage?": [  # runs it started from
        {"role?": text, "job_id?": text, "path?": text, "revisions?": {"*": count}}
    ],
    "revisions?": {"*": count},  # of mended recipes, by class (see identity)
    "config": {"model?": {"init_args?": {}}, "data?": {"init_args?": {}}, "trainer?": {}},
    "versions?": {},
    "git?": {},
    "seed": count,
    "data": {
        **{"source": text, "index_hash": text, "class_names": [text], "class_counts": [count]},
        "images": {"*": count},  # by split
        "unlabelled_counts?": counts,
        "head_mid_tail?": [count],  # numbers of classes; null: 30/40/30 %
    },
    "metrics": {"*": {"test?": {"*": metric}, "val?": {"*": metric}}},  # last, best
    "weights?": text,  # raw or averaged
    "deviations?": [text],  # from the paper
    "device?": text,
    "threads?": count,
    "precision?": text,
    "world_size?": count,
    "batch_size?": count,  # over all ranks
    "parameters?": number,
    "epochs?": count,
    "steps?": count,
    "batches_per_epoch?": count,
    "images_seen": count,
    "wall_seconds": seconds,
    "images_per_second?": number,
    "peak_memory_bytes?": number,
    "status": text,  # running, done, interrupted or failed
    "cause?": lambda value: True,
}
"""What a record holds, in this order."""

SELECTIONS = {"last": "last epoch", "best": "best on val", "given": "given checkpoint"}
"""Which weights were measured, in words."""
PARTS = tuple(name.removesuffix("?") for name in RECORD)

# Records written before they named the sizes go by their data set.
_HEAD_MID_TAIL = {
    "cifar10": [3, 4, 3],
    "cifar100": [36, 35, 29],
    "imagenet_lt": [390, 445, 165],
    "inaturalist2018": [842, 3701, 3599],
}


def write_record(path: Path, **parts: Any) -> None:  # noqa: ANN401 - what JSON can hold
    """Write a record whole, from every part of :data:`RECORD`; ``schema`` may be left out.

    Raises:
        TypeError: A part is missing or unknown.
        UserError: A part has the wrong shape, such as a name with a control character.
    """
    parts = {"schema": SCHEMA, **parts}
    if different := sorted(parts.keys() ^ set(PARTS)):
        raise TypeError(f"these parts of a record are missing or unknown: {', '.join(different)}")
    record = plain({name: parts[name] for name in PARTS})
    if wrong := misfit(record, RECORD):
        raise UserError(f"{path} cannot be written: the run has no valid '{wrong}'.")
    write_json(path, record)


def read_record(path: Path) -> Record:
    """Read and check a record; one of an earlier ltbench is converted to the present form.

    Classes of ltbench are then named without their modules, which may have moved since.

    Raises:
        UserError: It is missing, cut off, not a record, or from a newer ltbench.
    """
    try:
        record = untrusted.read_json(path)
        schema = int(record["schema"])
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable run record: {error}") from error
    if schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}: upgrade ltbench, which reads {SCHEMA}.")
    if wrong := misfit(record, RECORD):
        raise UserError(f"{path} is not a readable run record: it has no valid '{wrong}'.")
    data = record["data"]
    classes, sizes = len(data["class_counts"]), _HEAD_MID_TAIL.get(record.get("dataset"), [])
    data.setdefault("head_mid_tail", sizes if sum(sizes) == classes else None)
    if {len(data["class_names"]), sum(data["head_mid_tail"] or [classes])} != {classes}:
        raise UserError(f"{path} contradicts itself about the number of classes.")
    return {**record, "config": canonical(record["config"])}


def misfit(value: Any, shape: Any, where: str = "") -> str | None:  # noqa: ANN401
    """Return the dotted name of the first part that does not fit its shape; None if all do."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return where
        inner = [(f"{where}[{n}]", item, shape[0]) for n, item in enumerate(value)]
    elif isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return where
        inner = list(_members(value, shape, f"{where}." if where else ""))
    else:
        return None if shape(value) else where
    return next((wrong for part in inner if (wrong := misfit(part[1], part[2], part[0]))), None)


def _members(
    value: Mapping[str, Any], shape: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    known = {name.removesuffix("?") for name in shape}
    for name, inner in shape.items():
        key = name.removesuffix("?")
        if name == "*":
            yield from ((prefix + k, v, inner) for k, v in value.items() if k not in known)
        elif key == name or value.get(key) is not None:
            yield prefix + key, value.get(key), inner

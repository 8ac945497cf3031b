"""What a run leaves: ``record.json``, written whole, read back the same.

Schema (version 1): ``schema``, ``job_id``, ``name``, ``method``, ``dataset``, ``seed``, ``stage``,
``lineage``, ``config``, ``data`` (class counts, index hash), ``metrics`` by selection (``last``,
``best``) and split, ``weights`` (raw or averaged), ``deviations``, ``versions``, ``git``,
``device``, ``threads``, ``precision``, ``world_size``, ``batch_size`` (over all ranks),
``parameters``, ``epochs``, ``steps``, ``batches_per_epoch``, ``images_seen``, ``wall_seconds``,
``images_per_second``, ``peak_memory_bytes``, ``status`` (running, done, interrupted, failed) and
``cause``. Metrics are fractions in [0, 1]; an undefined one is null.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ltbench.errors import UserError

SCHEMA = 1

NPZ_DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What reading a damaged or a malicious ``npz`` file raises."""

# What a user may change without making it another experiment.
_INCIDENTAL = {
    "data": {"root", "num_workers", "predict_folder", "eval_batch_size"},
    "trainer": {
        "logger",
        "default_root_dir",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
        "log_every_n_steps",
        "profiler",
    },
}


def job_id(
    config: dict[str, Any], data_fingerprint: str, starts: dict[str, Any] | None = None
) -> str:
    """Return the 16 hex digits that name an experiment: a hash of its resolved config.

    Where the data lies, how it is decoded and how progress is shown do not count.

    Args:
        config: The resolved config: ``seed_everything``, ``model``, ``data``, ``trainer``.
        data_fingerprint: What tells the data of one root from that of another.
        starts: What names the trained networks that the run begins with, wherever they lie, by
            the argument of the model that they replace.
    """
    data, model = config["data"], config["model"]
    if starts:
        model = {**model, "init_args": {**model["init_args"], **starts}}
    kept = {
        "seed_everything": config["seed_everything"],
        "model": model,
        "data": {**data, "init_args": _without(data.get("init_args", {}), _INCIDENTAL["data"])},
        "fingerprint": data_fingerprint,
        "trainer": _without(config["trainer"], _INCIDENTAL["trainer"]),
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _without(mapping: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place and rename it there: readers see the old one or the new one.

    Args:
        path: Where the file goes; its folder is made.
        write: Called with the open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # not its part; and a full disk names no file at all
        raise
    finally:
        part.unlink(missing_ok=True)


def clear_parts(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left below a folder."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def require_place(path: Path) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        UserError: It is a folder, or its own is a file or may not be written to.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write.")
    if not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is no folder. Name another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: you may not write to {above}.")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON; NaN becomes null, so that any JSON reader can take it."""
    text = json.dumps(_plain(record), indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON is recursive
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        UserError: The file is cut off, is no record, or comes from a newer ltbench.
    """
    try:
        record = json.loads(path.read_text())
        schema = int(record["schema"])
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no readable run record: {error}") from error
    if schema > SCHEMA:
        raise UserError(
            f"{path} has schema {schema}; this ltbench reads {SCHEMA}: upgrade ltbench."
        )
    if not isinstance(record.get("status"), str):
        raise UserError(f"{path} is no readable run record: it has no 'status'.")
    return record  # type: ignore[no-any-return]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    names = ("ltbench", "torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def git_state(file: Path) -> dict[str, Any]:
    """Return the commit that ``file`` belongs to and whether its folder has changed since.

    A file that is new in that folder is a change. Both are None for a file that no repository
    tracks, such as that of an installed package, even inside the checkout of another project.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if not git("ls-files", file.name):
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", ".")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}

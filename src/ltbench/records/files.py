"""Files that are whole or not there, and reading that survives damage: JSON, YAML, npz.

Only what reads or writes npz imports numpy.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from ltbench import untrusted
from ltbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NPZ_DAMAGE = (  # what reading a damaged or a malicious file raises
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)
MOST_ARRAYS = 2**30  # bytes that the arrays of a file may take in memory

Form = tuple[tuple[int, ...], "np.dtype[Any]"]
"""Shape and type of an array."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place and rename it there: readers see the old one or the new one.

    ``write`` is called with the open binary file; the folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # never what a link of that name leads to
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # not its part; and a full disk names no file at all
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text whole, in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: object) -> None:
    """Write JSON whole; what JSON lacks becomes null (NaN, infinity) or text."""
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON is recursive
    """Return a value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; an empty one where it is missing or damaged."""
    try:
        content = untrusted.read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays whole, by their names."""
    import numpy as np

    columns: dict[str, Any] = dict(arrays)
    write_whole(path, lambda file: np.savez_compressed(file, **columns))


def read_npz(path: Path, *leave_out: str) -> dict[str, NDArray[Any]]:
    """Read arrays by their names, but for those to leave out; nothing in the file is executed.

    Raises:
        UserError: The file is damaged, or its arrays take more than 1 GiB.
    """
    import numpy as np

    npz_forms(path)
    try:
        with untrusted.open_file(path) as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored if name not in leave_out}
    except _NPZ_DAMAGE as error:
        raise UserError(f"{path} is damaged: {error}") from error


def npz_forms(path: Path) -> dict[str, Form]:
    """Return the shape and type of each array by its name, without decompressing any.

    Raises:
        UserError: The file is damaged, or its arrays take more than 1 GiB.
    """
    try:
        with untrusted.open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MOST_ARRAYS:
                raise ValueError(f"its arrays take more than {MOST_ARRAYS:,} bytes")
            return {m.filename.removesuffix(".npy"): _form(archive, m) for m in members}
    except _NPZ_DAMAGE as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _form(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Form:
    from numpy.lib import format as npy

    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in an unusual way")
    with archive.open(member) as array:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, kind = read[npy.read_magic(array)](array)
        if kind.kind not in "biufcSU":
            raise ValueError(f"{member.filename} holds neither numbers nor texts")
        if array.tell() + math.prod(shape) * kind.itemsize != member.file_size:
            raise ValueError(f"{member.filename} is not as long as its shape says")
    return shape, kind


def clear_parts(folder: Path) -> None:
    """Remove the unfinished files that killed processes left below a folder."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def require_place(path: Path) -> None:
    """Refuse a path that cannot be written, before any work is done for it.

    Raises:
        UserError: It is a folder, or its parent is a file or may not be written to.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write.")
    if not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is not a folder. Name another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: no permission to write to {above}.")


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys: the later value would silently replace the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - as yaml's
        node = super().compose_mapping_node(anchor)  # before merges (<<) are resolved
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            problem = f"'{duplicate}' appears twice"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - YAML is recursive
    """Read YAML as configs and suites hold it: plain data without duplicate keys.

    Raises:
        yaml.YAMLError: It is malformed, has a key twice, or is nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error

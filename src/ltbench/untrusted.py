"""Files that somebody else may have put there: opened without waiting, read within limits.

A folder that others write to may hold a pipe called ``record.json``, a link to a private file
called ``x.png``, or a small file that becomes gigabytes in memory. Every file of such a folder is
opened by :func:`open_file`. Importing this module needs no torch.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickletools
import stat
import zipfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

MOST_TEXT = 64 * 2**20  # bytes of a record, a config, a table of curves or a plan
MOST_DIGITS = 30  # of a whole number in JSON
MOST_LEVELS = 50  # of JSON, one inside the other
_ZIP = b"PK\x03\x04"


def open_file(path: Path, most: int | None = None, below: Path | None = None) -> BufferedReader:
    """Open a file for reading if it is a plain one; a pipe or a device is neither read nor awaited.

    Args:
        path: The file.
        most: Largest size in bytes; default: any.
        below: A folder that the file has to lie in; nothing below it may be a symbolic link.

    Raises:
        OSError: It is missing, no plain file, too large, or reached through a link.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a null character", str(path))
    if below is None and not stat.S_ISREG(path.stat().st_mode):
        raise _not_plain(path)  # before it is opened: opening a device may do something
    file = _open(path) if below is None else _open_below(below, path)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _not_plain(path)
        if most is not None and status.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
        return open(path, "rb", opener=lambda *_: file)
    except BaseException:
        os.close(file)
        raise


def _not_plain(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is not a plain file", str(path))


def _open(path: str | Path, flags: int = 0, folder: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | flags, dir_fd=folder)


def _open_below(above: Path, path: Path) -> int:
    """Open each folder on the way from the one before, so that none can be replaced by a link."""
    *folders, name = path.relative_to(above).parts
    if ".." in (*folders, name):
        raise OSError(errno.EINVAL, f"it leads out of {above}", str(path))
    place = _open(above, os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = _open(folder, os.O_DIRECTORY | os.O_NOFOLLOW, place)
            os.close(place)
            place = inner
        mode = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            raise _not_plain(path)
        return _open(name, os.O_NOFOLLOW, place)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(place)


def read_text(path: Path, most: int = MOST_TEXT, below: Path | None = None) -> str:
    """Read a text in UTF-8.

    Raises:
        OSError: As :func:`open_file` does.
        UnicodeDecodeError: It is not UTF-8.
    """
    with open_file(path, most, below) as file:
        return file.read().decode()


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON is recursive
    """Read JSON whose numbers and levels are few enough for all that may be done with it.

    Raises:
        OSError: As :func:`open_file` does.
        ValueError: It is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        content = json.loads(read_text(path), parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content]
    for _ in range(MOST_LEVELS):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    return content


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a whole number of {len(digits)} digits")
    return int(digits)


def _inside(value: Any) -> list[Any]:  # noqa: ANN401 - JSON is recursive
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


class Overgrown(ValueError):
    """A file that would take more memory than it has bytes."""


def load_checkpoint(path: Path, mmap: bool = False) -> Any:  # noqa: ANN401 - whatever it holds
    """Load what ``torch.save`` wrote, on the CPU, without executing anything in it.

    What is loaded takes no more memory than the file: compressed contents, and tensors that claim
    more than the file holds, are refused.

    Args:
        path: The file.
        mmap: Read tensors only when they are used.

    Raises:
        OSError: As :func:`open_file` does.
        Overgrown: It would take more memory than it has bytes.
        Exception: It is damaged, or not such a file: torch raises errors of many types.
    """
    import torch

    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        pickled: BinaryIO = file
        if file.read(len(_ZIP)) == _ZIP:  # as torch tells them apart
            with zipfile.ZipFile(file) as archive:
                pickled = _check_archive(archive, size)
        else:
            file.seek(0)
            mmap = False  # the format before torch 1.6 cannot
        for name in _names_in(pickled):
            if name.endswith("bytearray"):  # of any length, from a few bytes
                raise Overgrown(f"it makes a {name}")
        file.seek(0)
        state = torch.load(path if mmap else file, "cpu", weights_only=True, mmap=mmap)
    whole: dict[int, int] = {}
    for tensor in _tensors(state):
        if tensor.numel() * tensor.element_size() > size or tensor.layout != torch.strided:
            raise Overgrown("it has a tensor that is larger than the file")
        storage = tensor.untyped_storage()
        whole[storage._cdata] = storage.nbytes() if tensor.device.type == "cpu" else 0
    if sum(whole.values()) > size:
        raise Overgrown("its tensors are larger than the file")
    return state


def _check_archive(archive: zipfile.ZipFile, size: int) -> BinaryIO:
    """Return the pickle in an archive whose members are neither compressed nor overlapping."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Overgrown("its contents are compressed, which torch.save does not do")
    if sum(member.file_size for member in members) > size:
        raise Overgrown("its contents are larger than the file")
    return io.BytesIO(
        b"".join(archive.read(m) for m in members if m.filename.endswith("/data.pkl"))
    )


def _names_in(stream: BinaryIO) -> Iterator[str]:
    """Yield what pickles name, one after the other, up to the first bytes that are none."""
    for _ in range(5):  # as many as a checkpoint of the old format begins with
        try:
            for code, argument, _ in pickletools.genops(stream):
                if code.name == "GLOBAL":
                    yield str(argument)
        except ValueError:
            return


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401 - whatever a checkpoint holds
    """Yield the tensors anywhere in a value."""
    import torch

    seen, left = set(), [value]
    while left:
        inner = left.pop()
        if isinstance(inner, torch.Tensor):
            yield inner
        elif id(inner) not in seen:
            seen.add(id(inner))
            left += _inside(inner)

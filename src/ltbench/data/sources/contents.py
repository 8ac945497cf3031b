"""What files contain, by hashes that are remembered: a file is read again only once it changes."""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ltbench.errors import UserError
from ltbench.records.files import read_npz, write_npz

_log = logging.getLogger(__name__)

VARIABLE = "LTBENCH_CACHE"
"""Environment variable: where hashes are remembered; default: ``~/.cache/ltbench``."""
READERS = 16  # threads: they mostly wait for the disk
SETTLED = 2.0  # seconds: a file changed later than that may change again without a new time
MANY = 10_000  # files, which take a while to read
SIZE = 16  # bytes of a hash

State = tuple[int, ...]
"""Size, times of the last changes of content and of anything, and inode of a file."""
Known = dict[bytes, tuple[State, bytes]]
"""State and hash of a file, by its name."""


def digests(root: Path, names: Sequence[bytes]) -> list[bytes]:
    """Return the hash of each file below a folder.

    Args:
        root: The folder.
        names: Paths below it.

    Raises:
        OSError: A file is missing or cannot be read.
    """
    store = _store(root)
    known = _remembered(store)
    paths = [os.path.join(os.fsencode(root), name) for name in names]  # noqa: PTH118 - bytes
    now = time.time()
    states = [_state(path) for path in paths]
    new = [
        row
        for row, (name, state) in enumerate(zip(names, states, strict=True))
        if known.get(name, ((), b""))[0] != state
    ]
    if len(new) >= MANY:
        _log.warning("Reading %s files in %s once, to know them again.", f"{len(new):,}", root)
    with ThreadPoolExecutor(READERS) as pool:
        parts = [new[at : at + 256] for at in range(0, len(new), 256)]
        hashed = pool.map(lambda part: [_digest(paths[row]) for row in part], parts)
        fresh = dict(zip(new, (digest for part in hashed for digest in part), strict=True))
    digests = [fresh[row] if row in fresh else known[name][1] for row, name in enumerate(names)]
    settled = [row for row in fresh if max(states[row][1:3]) < (now - SETTLED) * 1e9]
    if settled:
        _remember(store, known | {names[row]: (states[row], digests[row]) for row in settled})
    return digests


def _state(path: bytes) -> State:
    entry = os.stat(path)  # noqa: PTH116 - bytes
    if not stat.S_ISREG(entry.st_mode):
        raise UserError(f"{os.fsdecode(path)} is not a file: remove it.")
    return entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino


def _digest(path: bytes) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - bytes
        return hashlib.blake2b(file.read(), digest_size=SIZE).digest()


def _store(root: Path) -> Path:
    place = os.environ.get(VARIABLE) or Path.home() / ".cache" / "ltbench"
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return Path(place) / f"contents-{name}.npz"


def _remembered(store: Path) -> Known:
    """Read what is remembered; nothing where the file is damaged or another user's."""
    try:
        if store.stat().st_uid != os.getuid():
            return {}
        stored = read_npz(store)
        names, states, hashes = (stored[column] for column in ("names", "states", "hashes"))
    except (OSError, UserError, KeyError):
        return {}
    kinds = [(column.dtype.kind, column.shape[1:]) for column in (names, states, hashes)]
    if kinds != [("S", ()), ("i", (4,)), ("u", (SIZE,))]:
        return {}
    entries = zip(map(tuple, states.tolist()), map(bytes, hashes), strict=False)
    return dict(zip(names.tolist(), entries, strict=False))


def _remember(store: Path, known: Known) -> None:
    columns = {
        "names": np.array(list(known), dtype=np.bytes_),
        "states": np.array([state for state, _ in known.values()], dtype=np.int64),
        "hashes": np.array([list(digest) for _, digest in known.values()], dtype=np.uint8),
    }
    try:
        write_npz(store, columns)
    except OSError as error:
        _log.warning(
            "warning: %s cannot be written (%s): the images are read again at each start. Name "
            "another folder in %s.",
            store,
            error.strerror,
            VARIABLE,
        )

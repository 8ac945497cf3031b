"""A folder that one process at a time may write."""

import errno
import fcntl
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltbench.errors import UserError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the system frees it, however the process ends.

    The file and the folders made for it are removed afterwards, as far as nothing else is in them.
    The lock is the process's own: workers that it forked do not hold it on after its death.

    Raises:
        UserError: Another process holds it.
    """
    folder = path.parent
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    file = _held(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        if file is not None:
            os.close(file)
        with suppress(OSError):  # not empty
            for above in made:
                above.rmdir()


def _held(path: Path) -> int | None:
    """Return the open file of a lock; None, with a warning, where there are no locks."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A stranger's folder may hold a link or a pipe of this name.
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise _no_lock(path) from error
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(file)
            raise _no_lock(path)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if status.st_ino == path.lstat().st_ino:
                os.truncate(file, 0)
                os.write(file, f"process {os.getpid()} on {os.uname().nodename}".encode())
                return file
            os.close(file)  # another process has removed it since: take the new one
        except FileNotFoundError:
            os.close(file)
        except OSError as error:
            holder = os.read(file, 300).decode(errors="replace")
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"{path.parent} is being trained by {holder or 'another process'}: wait until "
                    "that has ended, or stop it."
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            warnings.warn(
                f"{path.parent} cannot be locked ({error.strerror}): start one process for it.",
                stacklevel=4,
            )
            return None


def _no_lock(path: Path) -> UserError:
    return UserError(f"{path} is not a lock file that ltbench made: remove it.")

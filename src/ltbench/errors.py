"""The exception for mistakes of a user: what, where, and what to do, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 20  # listed beside the nearest one


class UserError(Exception):
    """A mistake in the user's input; the command line prints it and exits with code 2.

    The message is one or two lines: what is wrong, where, and what to do.
    """

    def __init__(self, message: str) -> None:
        # torch raises an error of a worker again, with its traceback in front
        if message.startswith("Caught UserError in DataLoader worker"):
            message = message.rpartition("UserError: ")[2].strip()
        super().__init__(message)


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the nearest valid one.

    Args:
        kind: What is named, for example ``"loss"``.
        name: The name as the user wrote it.
        valid: All valid names.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = len(names) <= MAX_NAMES or not near
    choice = f" Valid: {', '.join(names)}." if listed else ""
    return UserError(f"unknown {kind} '{name}'.{hint}{choice}")

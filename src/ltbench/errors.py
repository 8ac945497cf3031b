"""The one exception that a user's mistake raises: a cause, a place and a way out, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 20  # that are listed beside the nearest one


class UserError(Exception):
    """A mistake in what the user gave; the command line prints it and exits with code 2.

    The message is one or two lines: what is wrong, where, and what to do.
    """

    def __init__(self, message: str) -> None:
        """Take the message; torch raises a worker's error again with its traceback in front."""
        if message.startswith("Caught UserError in DataLoader worker"):
            message = message.rpartition("UserError: ")[2].strip()
        super().__init__(message)


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a closed set, with the nearest valid one.

    Args:
        kind: What is being named, for example ``"loss"``.
        name: The name as the user wrote it.
        valid: Every name that would have been accepted.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = len(names) <= MOST_NAMES or not near
    choice = f" Valid: {', '.join(names)}." if listed else ""
    return UserError(f"unknown {kind} '{name}'.{hint}{choice}")

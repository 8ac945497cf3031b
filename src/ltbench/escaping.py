"""Names that somebody chose, shown as text and nothing else: on a terminal, in a table, drawn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = (*"=+-@\t\r\n'", *"\uff1d\uff0b\uff0d\uff20")  # and these in full width
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def printable(text: str) -> str:
    r"""Spell out the characters, other than line ends, that a terminal would obey.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def cell(value: Any) -> Any:  # noqa: ANN401 - what a table holds
    """Return the cell of a CSV file that a spreadsheet shows instead of running it.

    A text that it would take for a formula begins with an apostrophe, and so does, to be read back
    unambiguously, one that began with an apostrophe itself. Numbers stay numbers.

    >>> [cell("=1+1"), cell("-3.5"), cell("bee"), cell("'tis"), cell(-3.5)]
    ["'=1+1", '-3.5', 'bee', "''tis", -3.5]
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with every text as :func:`cell` writes it."""
    safe = table.copy()
    for name, column in table.items():
        if column.dtype.kind == "O":
            safe[name] = column.map(cell)
    return safe


def drawn(text: str) -> str:
    r"""Return a text that matplotlib draws as it stands.

    It takes what stands between two dollar signs for mathematics, and leaves what begins with an
    underscore out of legends.

    >>> drawn("US$_$")
    'US\\$_\\$'
    """
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")

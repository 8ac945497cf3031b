"""The parser of the light commands; a mistake is one line, as everywhere."""

import argparse
from typing import NoReturn

from typing_extensions import override

from ltbench.errors import UserError


class Arguments(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are :class:`~ltbench.errors.UserError`."""

    def __init__(
        self, prog: str, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False)

    @override
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`).")


def whole_number(text: str) -> int:
    """Return a whole number of at least 1; the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)

"""The parser of the light commands: its complaints are one line, as all others."""

import argparse
from typing import NoReturn

from typing_extensions import override

from ltbench.errors import UserError


class Arguments(argparse.ArgumentParser):
    """A parser that takes no abbreviations and raises what is wrong."""

    def __init__(
        self, prog: str, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False)

    @override
    def error(self, message: str) -> NoReturn:
        """Raise the mistake, in a line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message} (`{self.prog} --help` says what there is).")


def whole_number(text: str) -> int:
    """Return a number from 1 on, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)

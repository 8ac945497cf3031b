"""Which packages a config may name classes of: naming a class imports it, and that runs code."""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ltbench.errors import UserError

TRUSTED = frozenset({"ltbench", "torch", "torchvision", "lightning", "timm", "torchmetrics"})
VARIABLE = "LTBENCH_TRUST"
"""Environment variable: further packages, separated by commas."""

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def require_trusted(settings: object, where: str) -> None:
    """Refuse settings that name a class or a function of a package that nobody vouched for.

    Any text may be taken for an import path where a class is expected, so texts that look like one
    are judged by the package they would import. Nothing is imported to find out.

    Args:
        settings: A config or a part of one, as read from YAML.
        where: What to call it in the message.

    Raises:
        UserError: The package is not in :data:`TRUSTED`, nor in the variable LTBENCH_TRUST; or
            the settings hold themselves.
    """
    trusted = TRUSTED | set(os.environ.get(VARIABLE, "").replace(" ", "").split(","))
    try:
        texts = list(_texts(settings))
    except RecursionError:
        raise UserError(f"{where} is nested without an end.") from None
    for text, named in texts:
        package = text.partition(".")[0]
        if package not in trusted and (named or not Path(text).exists()) and _is_package(package):
            raise UserError(
                f"{where} names {text:.80}: importing package '{package}' runs its code. If you "
                f"trust it and this config: {VARIABLE}={package} ltbench ..."
            )


def _texts(value: object, named: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield each text that looks like an import path, and whether it is a ``class_path``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, key == "class_path")
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and _IMPORT_PATH.fullmatch(value):
        yield value, named


def _is_package(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a spec, such as __main__
        return True

"""Which packages a config may use: naming a class imports its package, which runs code."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ltbench.errors import UserError
from ltbench.naming import IMPORT_PATH

TRUSTED = frozenset({"ltbench", "torch", "torchvision", "lightning", "timm", "torchmetrics"})
VARIABLE = "LTBENCH_TRUST"
"""Environment variable: further packages, separated by commas."""

NAMING = frozenset({"class_path", "source", "sampler", "profile", "loss", "objective"})
"""Keys whose value is imported, also where a file happens to have the same name."""

MAX_VALUES = 100_000  # of a config


def require_trusted(settings: object, where: str) -> None:
    """Refuse settings that name a class or a function of a package that is not trusted.

    Any text that looks like an import path is judged by the package that it would import, since it
    might stand where a class is expected. Nothing is imported to find out.

    Args:
        settings: A config or a part of one, as read from YAML.
        where: Its name in the message.

    Raises:
        UserError: The package is neither in :data:`TRUSTED` nor in the variable LTBENCH_TRUST, or
            the settings contain themselves or too many values.
    """
    trusted = TRUSTED | set(os.environ.get(VARIABLE, "").replace(" ", "").split(","))
    for text, named in _texts(settings, where):
        package = text.partition(".")[0]
        if package not in trusted and (named or not Path(text).exists()) and _is_package(package):
            raise UserError(
                f"{where} names {text:.80}, and importing package '{package}' runs its code. If "
                f"you trust both it and this config: {VARIABLE}={package} ltbench ..."
            )


def _texts(settings: object, where: str) -> Iterator[tuple[str, bool]]:
    """Yield each text that looks like an import path, and whether a key says that it is one."""
    seen, left = 0, [(settings, False)]
    while left:
        value, named = left.pop()
        seen += 1
        if seen > MAX_VALUES:  # YAML aliases of aliases can stand for more than memory holds
            raise UserError(f"{where} is nested endlessly or has over {MAX_VALUES} values.")
        if isinstance(value, Mapping):
            left += [(item, key in NAMING) for key, item in value.items()]
        elif isinstance(value, list):
            left += [(item, False) for item in value]
        elif isinstance(value, str) and IMPORT_PATH.fullmatch(value):
            yield value, named


def _is_package(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a spec, such as __main__
        return True

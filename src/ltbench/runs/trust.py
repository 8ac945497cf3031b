"""Which packages a config may name classes of: naming a class imports it, and that runs code."""

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

MOST_VALUES = 100_000  # of a config


def require_trusted(settings: object, where: str) -> None:
    """Refuse settings that name a class or a function of a package that nobody vouched for.

    Any text may be taken for an import path where a class is expected, so texts that look like one
    are judged by the package they would import. Nothing is imported to find out.

    Args:
        settings: A config or a part of one, as read from YAML.
        where: What to call it in the message.

    Raises:
        UserError: The package is not in :data:`TRUSTED`, nor in the variable LTBENCH_TRUST; or
            the settings hold themselves, or have more values than any config.
    """
    trusted = TRUSTED | set(os.environ.get(VARIABLE, "").replace(" ", "").split(","))
    for text, named in _texts(settings, where):
        package = text.partition(".")[0]
        if package not in trusted and (named or not Path(text).exists()) and _is_package(package):
            raise UserError(
                f"{where} names {text:.80}: importing package '{package}' runs its code. If you "
                f"trust it and this config: {VARIABLE}={package} ltbench ..."
            )


def _texts(settings: object, where: str) -> Iterator[tuple[str, bool]]:
    """Yield each text that looks like an import path, and whether it stands where one is named."""
    seen, left = 0, [(settings, False)]
    while left:
        value, named = left.pop()
        seen += 1
        if seen > MOST_VALUES:  # a few aliases of aliases stand for more than memory holds
            raise UserError(f"{where} is nested without an end, or has over {MOST_VALUES} values.")
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

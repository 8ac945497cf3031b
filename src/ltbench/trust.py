"""Which classes a config may name: to name one imports its module, and to build one calls it.

A config, a record or a checkpoint may come from a stranger. So what it names is checked where it is
imported, however the name got there: the path as it is written, each module on the way, and the
module that defines what stands at its end. docs/security.md says what follows from that.
"""

import functools
import importlib.util
import inspect
import os
import pkgutil
from types import ModuleType
from typing import Any

from ltbench.errors import UserError

VARIABLE = "LTBENCH_TRUST"
"""Environment variable: the user's own packages or modules, separated by commas."""

MODULES = (
    *("ltbench.methods", "ltbench.models", "ltbench.data", "ltbench.optim"),
    *("torch.optim", "timm.optim"),
    *("lightning.pytorch.accelerators", "lightning.pytorch.callbacks"),
    *("lightning.pytorch.loggers.csv_logs", "lightning.pytorch.loggers.tensorboard"),
    *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"),
    *("lightning.pytorch.plugins", "lightning.fabric.plugins"),
    *("lightning.pytorch.profilers", "lightning.pytorch.strategies"),
)
"""Modules whose classes any config may name, each where a class of its kind belongs."""

EXCEPT = ("lightning.pytorch.callbacks.lambda_function",)  # whose callback calls any function


def vouched() -> tuple[str, ...]:
    """Return the packages and modules that the user trusts: :data:`VARIABLE`.

    Raises:
        UserError: One of them is not a name that Python could import.
    """
    entries = os.environ.get(VARIABLE, "").replace(" ", "").split(",")
    for entry in filter(None, entries):
        if not all(part.isidentifier() for part in entry.split(".")):
            raise UserError(
                f"{VARIABLE} holds '{entry:.80}', which is not the name of a package or a module."
            )
        if entry.partition(".")[0] == "jsonargparse":
            raise UserError(f"{VARIABLE}: {entry} reads configs, and cannot be named in one.")
    return tuple(filter(None, entries))


def imported(path: str) -> Any:  # noqa: ANN401 - whatever the user has written
    """Import what the user's own code calls by this path, such as ``my_package.my_loss``.

    Raises:
        UserError: It is not of a package or module that :data:`VARIABLE` names.
        ImportError, AttributeError, ValueError: There is nothing of this name.
    """
    trusted = vouched()
    if not _below(path, trusted):
        raise UserError(refusal(path))
    parts = path.split(".")
    for end in range(1, len(parts)):  # `my_package.os.system` is not the user's own
        above = pkgutil.resolve_name(".".join(parts[:end]))
        name = above.__name__ if isinstance(above, ModuleType) else path
        if not _below(name, trusted) and not any(_below(entry, (name,)) for entry in trusted):
            raise UserError(refusal(f"{name}.{'.'.join(parts[end:])}"))
    target = pkgutil.resolve_name(path)
    origin = target.func if isinstance(target, functools.partial) else target
    if inspect.isclass(origin) or inspect.isroutine(origin):
        defined = f"{origin.__module__}.{origin.__qualname__}"
        if not _below(defined, (*trusted, *MODULES, "ltbench.losses", "ltbench.objectives")):
            raise UserError(refusal(defined))
    return target


def require_plain(value: Any, where: str) -> None:  # noqa: ANN401 - what YAML or a checkpoint hold
    """Refuse settings of a free dictionary that are more than numbers, texts and lists of them.

    Raises:
        UserError: They name a class, or hold an object.
    """
    if isinstance(value, dict):
        if "class_path" in value:
            raise UserError(f"{where} takes plain values; it cannot name a class.")
        for key, item in value.items():
            require_plain(item, f"{where}.{key:.40}" if isinstance(key, str) else where)
    elif isinstance(value, list | tuple):
        for item in value:
            require_plain(item, where)
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{where} takes plain values, not {type(value).__name__}.")


def refusal(path: str) -> str:
    """Say why a path is not imported, and how the user can allow it."""
    if path.endswith((".yaml", ".yml")):
        return f"{path:.120} is not read: a config names no other file. --config may stand twice."
    package, *_ = parts = path.split(".")
    if not _exists(package):
        return f"{path:.120} cannot be imported: there is no package '{package}' here."
    known = {module.partition(".")[0] for module in MODULES}
    entry = path.rpartition(".")[0] if package in known and len(parts) > 1 else package
    return (
        f"{path:.120} would be imported and called, which runs the code of '{entry:.120}'. If you "
        f"trust both it and what names it here: {VARIABLE}={entry} ltbench ..."
    )


def _below(path: str, entries: tuple[str, ...]) -> bool:
    return any(path == entry or path.startswith(f"{entry}.") for entry in entries)


def _exists(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, such as __main__
        return True

"""Open names: a config names one of our parts by a short name, or the user's by its path."""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from ltbench import trust
from ltbench.errors import UserError, unknown_name

Name = str | dict[str, Any]
"""A short name, an import path such as ``my_package.Sampler``, or ``{class_path, init_args}``."""

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""Whatever is imported looks like this."""

T = TypeVar("T")


def resolve(kind: str, name: Name, table: Mapping[str, T | str], base: type | None = None) -> T:
    """Return the class or function that a config names, its ``init_args`` bound to it.

    Args:
        kind: The option that names it, such as ``"loss"`` or ``"sampler"``.
        name: A key of ``table``, the class or function name of one of its parts, an import path,
            or one of these with its arguments as ``{"class_path": ..., "init_args": {...}}``.
        table: Our parts by their short names; a text is an import path, imported on demand.
        base: The class that it must be a subclass of; default: any class or function.

    Raises:
        UserError: There is no such name, it is not of a package that the user trusts (see
            `ltbench.trust`), cannot be imported, is of another kind, or does not accept these
            arguments.
    """
    path, arguments = _parts(kind, name)
    by_class = {_class_name(part): part for part in table.values()}
    target: Any = table.get(path, by_class.get(path))
    if target is None and not IMPORT_PATH.fullmatch(path):
        raise unknown_name(kind, path, table)
    if target is None and path.startswith("ltbench."):
        target = by_class.get(path.rpartition(".")[2])
    if target is None:
        target = _imported(kind, path)
    elif isinstance(target, str):
        target = pkgutil.resolve_name(target)
    if base is not None and not (isinstance(target, type) and issubclass(target, base)):
        raise UserError(f"{kind} '{path}' must be a subclass of {base.__module__}.{base.__name__}.")
    if not callable(target):
        raise UserError(f"{kind} '{path}' must be a class or a function.")
    if not arguments:
        return cast("T", target)
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for argument in arguments.keys() - parameters.keys():
            raise unknown_name(f"argument of {kind} '{path}'", argument, parameters)
    return cast("T", functools.partial(target, **arguments))


def _class_name(part: object) -> str:
    return part.rpartition(".")[2] if isinstance(part, str) else getattr(part, "__name__", "")


def _parts(kind: str, name: Name) -> tuple[str, dict[str, Any]]:
    if isinstance(name, str):
        return name, {}
    path, arguments = name.get("class_path"), name.get("init_args") or {}
    known = name.keys() <= {"class_path", "init_args"}
    if not (known and isinstance(path, str) and isinstance(arguments, dict)):
        raise UserError(f"{kind}: give a name, or class_path and, if needed, init_args.")
    return path, arguments


def _imported(kind: str, path: str) -> object:
    try:
        return trust.imported(path)
    except UserError as error:
        raise UserError(f"{kind}: {error}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{kind} '{path}' cannot be imported ({error}). Install the package, or put its folder "
            "on PYTHONPATH."
        ) from error

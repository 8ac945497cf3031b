"""A parser whose errors are for people: the key, what is wrong, and the nearest valid name."""

import difflib
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from ltbench import trust
from ltbench.data.base import DataModule
from ltbench.data.protocols import Protocol
from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.optim.sam import GradientRule
from ltbench.optim.schedules import LRSchedule
from ltbench.records import canonical, parse_yaml

_log = logging.getLogger(__name__)
_listener = logging.getLogger(f"{__name__}.listener")  # by name, since parsers are copied
_listener.setLevel(logging.DEBUG)
_listener.propagate = False

# Bases of the classes that a config may name.
BASES = (Method, DataModule, Protocol, BatchTransform, GradientRule, LRSchedule)

_UNKNOWN = re.compile(
    r"(?:[Oo]ption '(?P<option>[^']+)' is not accepted"
    r"|does not accept option '(?P<key>[^']+)'"
    r"|unrecognized arguments: (?P<argument>--\S+)"
    r"|Expected a dot import path string: (?P<name>\S+))"
)
_STRAY = re.compile(r"unrecognized arguments: (?!-).+?(?=\.?$)")  # values without an option
_MISSING = re.compile(r"the following arguments are required: (.+?)\.?$", re.MULTILINE)
_DROPPED = re.compile(
    r"class_path change from '(?P<old>[^']+)' to '(?P<new>[^']+)', "
    r"discarding init_args: \{(?P<arguments>.*)\}"
)
_DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by")
_PLACE = re.compile(r'Parser key "([^"]+)":')
_NOISE = re.compile(
    r"\s*(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:"
    r"|- Expected a <class 'NoneType'>|Given value.*|Parser key \"[^\"]+\":)\s*$"
)


class _Dropped(logging.Handler):
    """Warn, once each, of arguments that are dropped because another class replaces theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        match = _DROPPED.search(record.getMessage())
        if match is None or match[0] in self._seen:
            return
        self._seen.add(match[0])
        replaced = pkgutil.resolve_name(match["old"])
        settings = [
            (name, parameter.default)
            for base in replaced.__mro__
            for name, parameter in inspect.signature(base).parameters.items()
        ]
        for optimizer in _default_optimizers():
            settings += optimizer.defaults.items() if type(optimizer) is replaced else []
        defaults = {
            f"{name!r}: {default!r}"
            for name, value in settings
            for default in (value, float(value) if isinstance(value, int) else value)
        }
        arguments = re.split(r", (?=')", match["arguments"])
        if dropped := ", ".join(each for each in arguments if each not in defaults):
            old, new = (name.rpartition(".")[2] for name in match.group("old", "new"))
            _log.warning("warning: %s replaces %s, whose %s is dropped.", new, old, dropped)


def _default_optimizers() -> Iterator[Optimizer]:
    """Make the optimizer that each method uses if a config names none."""
    for class_ in _classes():
        parameter = inspect.signature(class_).parameters.get("optimizer")
        if parameter is not None and callable(parameter.default):
            made = parameter.default([nn.Parameter(torch.zeros(1))])
            if isinstance(made, Optimizer):
                yield made


MODE = "ltbench"  # of a parser: YAML, with our classes by their bare names
MAX_VALUES = 100_000  # of a config


def _load(text: str) -> Any:  # noqa: ANN401 - YAML is recursive
    value = get_loader("yaml")(text)
    if not _is_bounded(value):
        raise yaml.YAMLError(f"it is nested endlessly or has over {MAX_VALUES} values")
    return canonical(value)


def _is_bounded(settings: object) -> bool:
    """Say whether settings hold few values: aliases of aliases stand for more than memory holds."""
    seen, left = 0, [settings]
    while left and seen <= MAX_VALUES:
        value = left.pop()
        seen += 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return seen <= MAX_VALUES


set_loader(MODE, _load, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Lightning's parser, whose errors are :class:`~ltbench.errors.UserError`.

    It imports only what :mod:`ltbench.trust` lets a config name, wherever the name stands, builds
    nothing in a free dictionary, and opens no file but those of ``--config``.
    """

    # The logger hears what jsonargparse does not report; parsers of classes come with one.
    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as jsonargparse's
        if "logger" not in kwargs:
            _listener.handlers = [_Dropped()]
            _let_name()
        super().__init__(*args, **{"logger": _listener, "parser_mode": MODE, **kwargs})

    @override
    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})

    @override
    def add_subclass_arguments(self, *args: Any, **kwargs: Any) -> None:
        super().add_subclass_arguments(*args, **kwargs)
        action: Any = self._actions[-1]
        action._enable_path = False  # else a text may name a file
        action.sub_add_kwargs["sub_configs"] = False

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise cause(ex) or UserError(explain(message)) from ex


_named = set[str]()  # what a config could name when the last parser was made


def _let_name() -> None:
    """Tell jsonargparse what a config may name; it checks where it imports."""
    allowed = {*trust.MODULES, *trust.vouched()}
    denied = {"*", *trust.EXCEPT, *_named} - allowed
    set_parsing_settings(
        import_path_denylist=[*denied],
        import_path_allowlist=[*allowed],
        instantiate_subclass_spec_in_any=False,
    )
    _named.clear()
    _named.update(allowed)


def cause(error: BaseException | None) -> UserError | None:
    """Return the UserError that jsonargparse wrapped in errors of its own, if any."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def explain(message: str) -> str:
    """Reduce a message of jsonargparse to the place and the mistake, and add a suggestion.

    >>> explain("unrecognized arguments: --trainer.max_epoch 3")
    "unknown option '--trainer.max_epoch'. Did you mean '--trainer.max_epochs'?"
    """
    place = ".".join(_PLACE.findall(message))
    if denied := _DENIED.search(message):
        return f"{place + ': ' if place else ''}{trust.refusal(denied[1])}"
    if missing := _MISSING.search(message):
        what = f"{place}: {missing[1]} is missing" if place else f"{missing[1]} is missing"
        return f"{what}. Start from a config: --config FILE (`ltbench list configs`)."
    if stray := _STRAY.match(message):
        return f"{stray[0]}. If a pattern such as runs/NAME-* matches several files, name one."
    unknown = _UNKNOWN.search(message)
    if unknown is None:
        lines = [line.strip(" -") for line in message.splitlines() if not _NOISE.match(line)]
        value = re.search(r"^\s*Given value: (.{1,60})$", message, re.MULTILINE)
        suffix = f" (got {value[1]})" if value else ""
        return f"{place + ': ' if place else ''}{'; '.join(filter(None, lines))}{suffix}"
    name = next(group for group in unknown.groups() if group)
    kind = "class" if unknown["name"] else "option"
    where = f" in {place}" if place else ""
    near = _nearest(name, unknown["name"] is not None)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"unknown {kind} '{name}'{where}.{hint}"


def check_config(path: Path) -> dict[str, Any]:
    """Read a config; jsonargparse would not name the file in an error.

    Raises:
        UserError: It is missing, not text, not YAML, or not a config.
    """
    if not path.is_file():
        raise UserError(f"config {path} not found; `ltbench list configs` shows what there is.")
    try:
        config = parse_yaml(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a config: it needs the keys trainer, model and data.")
    check_settings(config, str(path))
    return config


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot be a config.

    Args:
        settings: Content of a config.
        where: Its name in messages.

    Raises:
        UserError: It has too many values, a part of it is not a mapping, or it says what a command
            reads, writes or removes.
    """
    if not _is_bounded(settings):
        raise UserError(f"{where} is nested endlessly or has over {MAX_VALUES} values.")
    for key, value in settings.items():
        if key in _OF_A_COMMAND:
            raise UserError(f"{where}: '{key}' belongs to a command: write --{key} there.")
        if key not in ("trainer", "model", "data"):
            continue
        if not isinstance(value, dict) and not (isinstance(value, str) and key != "trainer"):
            raise UserError(
                f"{where}: '{key}' must hold settings, not {value!r:.40}; indent the lines below."
            )


def check_argument(option: str, value: str) -> dict[str, Any]:
    """Read an argument as a config would hold it, nested by the dots in its option.

    Raises:
        UserError: It names a file in the place of the trainer's settings.
    """
    *above, last = option.removeprefix("--").split(".")
    try:
        settings = {last: yaml.safe_load(value)}
    except (yaml.YAMLError, RecursionError):  # the parser will report it
        return {}
    if option == "--trainer" and isinstance(settings[last], str):
        raise UserError(f"--trainer takes settings, not {value:.80}; --config takes a file.")
    for key in reversed(above):
        settings = {key: settings}
    return settings


def arguments_of(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return the arguments of a part (``model``, ``data``) of a config."""
    arguments = settings.get(part)
    if isinstance(arguments, dict):
        arguments = arguments.get("init_args", arguments)
    return arguments if isinstance(arguments, dict) else {}


def whole_numbers_first() -> None:
    """Let ``limit_train_batches: 1`` mean one batch, never all of them.

    Lightning has unions of int and float in both orders, and typing caches one for both, whichever
    comes first; if that is float, the parser reads 1 as 1.0, a share.
    """
    types = inspect.unwrap(Trainer.__init__).__annotations__
    for split in ("train", "val", "test", "predict"):
        types[f"limit_{split}_batches"] = int | float | None


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse settings that Lightning refuses late or never, or that would falsify a result.

    Args:
        settings: Resolved settings of the trainer.

    Raises:
        UserError: Naming the first such setting.
    """
    epochs, every = settings["max_epochs"], settings["check_val_every_n_epoch"]
    limits = [settings["limit_val_batches"], settings["limit_test_batches"]]
    for wrong, message in (
        (
            settings["fast_dev_run"] or settings["limit_train_batches"] == 0,
            "fast_dev_run and limit_train_batches: 0 leave no checkpoint to test; for a quick look "
            "use --trainer.max_epochs 1 --trainer.limit_train_batches 2",
        ),
        (every is not None and every < 1, "check_val_every_n_epoch must be at least 1"),
        (
            settings["val_check_interval"] is not None and settings["val_check_interval"] <= 0,
            "val_check_interval must be above 0",
        ),
        (
            0 < (epochs or 0) < (settings["min_epochs"] or 0),
            f"min_epochs is above max_epochs {epochs}, at which the schedules end",
        ),
        (
            settings["max_time"] is not None,
            "max_time would report an unfinished training as a result. To stop a run in time use "
            "`timeout 2h ltbench fit ...`: the same command resumes from its last checkpoint",
        ),
        (
            settings["max_steps"] != -1 or settings["min_steps"],
            "max_steps and min_steps would end the training before its schedules or after them, "
            "which are by epochs; use max_epochs and limit_train_batches",
        ),
        (
            settings["overfit_batches"],
            "overfit_batches replaces the order of the images; use limit_train_batches",
        ),
        (
            any(isinstance(limit, float) and limit != 1 for limit in limits),
            "limit_val_batches and limit_test_batches must be whole numbers of batches",
        ),
        (
            "://" in str(settings["default_root_dir"]) or not settings["default_root_dir"],
            "default_root_dir must be a folder on this machine, such as runs",
        ),
        (
            any(
                "class_path" in str(settings[key]) and isinstance(settings[key], str)
                for key in _WORDS
            ),
            f"{', '.join(_WORDS)} take one of Lightning's names or classes",
        ),
    ):
        if wrong:
            raise UserError(f"trainer.{message}.")
    if any(isinstance(limit, int) for limit in limits):
        _log.warning("warning: trainer.limit_..._batches is set: not all images are evaluated.")


def null_of(class_: type, arguments: Mapping[str, object]) -> str | None:
    """Return an argument that is null although its type does not allow it, if there is one."""
    for base in class_.__mro__:
        for name, parameter in inspect.signature(base).parameters.items():
            kind = parameter.annotation
            if kind is parameter.empty or callable(parameter.default):
                continue  # a default that is a function is written as null
            if name in arguments and arguments[name] is None and type(None) not in get_args(kind):
                return name
    return None


def _nearest(name: str, is_class: bool) -> str | None:
    dashes = "--" if name.startswith("--") else ""
    *path, last = name.removeprefix("--").split(".")
    options = {*_GROUPS, "class_path", "init_args", *_arguments()}
    valid = {c.__name__ for c in _classes()} if is_class else options
    if path and path[0] not in _GROUPS:
        path[0] = next(iter(difflib.get_close_matches(path[0], _GROUPS, 1)), path[0])
    near = last if last in valid else next(iter(difflib.get_close_matches(last, valid, 1)), None)
    nearest = dashes + ".".join([*path, near]) if near else None
    return None if nearest == name else nearest


_OF_A_COMMAND = ("config", "ckpt_path", "output", "fresh")
_WORDS = ("accelerator", "strategy", "profiler")  # where a class that is refused passes for a name
_GROUPS = ("trainer", "model", "data", "seed_everything", "name", "fresh", "output", "ckpt_path")


def _classes() -> Iterator[type]:
    pending: list[type] = list(BASES)
    while pending:
        class_ = pending.pop()
        yield class_
        pending.extend(class_.__subclasses__())


def _arguments() -> Iterator[str]:
    for class_ in (Trainer, *_classes()):
        yield from inspect.signature(class_).parameters

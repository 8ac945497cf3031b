"""A parser whose complaints are for people: the key, what is wrong, the nearest valid name."""

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
from jsonargparse import get_loader, set_loader
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from ltbench.data.base import DataModule
from ltbench.data.protocols import Protocol
from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.objectives import MultiplierRule
from ltbench.optim.sam import GradientRule
from ltbench.optim.schedules import LRSchedule
from ltbench.records import canonical, parse_yaml
from ltbench.runs.trust import require_trusted

_log = logging.getLogger(__name__)
_listener = logging.getLogger(f"{__name__}.listener")  # by name: a parser is copied, and so is it
_listener.setLevel(logging.DEBUG)
_listener.propagate = False

# The bases of what a config may name by its class: their subclasses are the valid names.
CHOICES = (
    Method,
    DataModule,
    Protocol,
    BatchTransform,
    GradientRule,
    LRSchedule,
    MultiplierRule,
)

_UNKNOWN = re.compile(
    r"(?:[Oo]ption '(?P<option>[^']+)' is not accepted"
    r"|does not accept option '(?P<key>[^']+)'"
    r"|unrecognized arguments: (?P<argument>--\S+)"
    r"|Expected a dot import path string: (?P<name>\S+))"
)
_STRAY = re.compile(r"unrecognized arguments: (?!-).+?(?=\.?$)")  # values that belong to no option
_MISSING = re.compile(r"the following arguments are required: (.+?)\.?$", re.MULTILINE)
_DROPPED = re.compile(
    r"class_path change from '(?P<old>[^']+)' to '(?P<new>[^']+)', "
    r"discarding init_args: \{(?P<arguments>.*)\}"
)
_PLACE = re.compile(r'Parser key "([^"]+)":')
_NOISE = re.compile(
    r"\s*(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:"
    r"|- Expected a <class 'NoneType'>|Given value.*|Parser key \"[^\"]+\":)\s*$"
)


class _Dropped(logging.Handler):
    """Warn, each once, of arguments that another class does not take over: they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        found = _DROPPED.search(record.getMessage())
        if found is None or found[0] in self._told:
            return
        self._told.add(found[0])
        replaced = pkgutil.resolve_name(found["old"])
        parameters = inspect.signature(replaced).parameters
        settings = [(name, parameter.default) for name, parameter in parameters.items()]
        for optimizer in _default_optimizers():
            settings += optimizer.defaults.items() if type(optimizer) is replaced else []
        defaults = {
            f"{name!r}: {default!r}"
            for name, value in settings
            for default in (value, _as_float(value))
        }
        each = re.split(r", (?=')", found["arguments"])
        if given := ", ".join(argument for argument in each if argument not in defaults):
            old, new = (name.rpartition(".")[2] for name in found.group("old", "new"))
            _log.warning("warning: %s takes the place of %s, whose %s is dropped.", new, old, given)


def _default_optimizers() -> Iterator[Optimizer]:
    """Make the optimizer that each method takes where a config names none."""
    for found in _classes():
        parameter = inspect.signature(found).parameters.get("optimizer")
        if parameter is not None and callable(parameter.default):
            made = parameter.default([nn.Parameter(torch.zeros(1))])
            if isinstance(made, Optimizer):
                yield made


def _as_float(value: object) -> object:
    return float(value) if isinstance(value, int) else value  # as a parameter of that type has it


MODE = "ltbench"  # of a parser: YAML, with the classes of ours by their bare names
set_loader(MODE, lambda text: canonical(get_loader("yaml")(text)), (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Lightning's parser, which raises its errors as :class:`~ltbench.errors.UserError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as jsonargparse's
        if "logger" not in kwargs:
            _listener.handlers = [_Dropped()]
        super().__init__(*args, **{"logger": _listener, "parser_mode": MODE, **kwargs})

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake in a line or two.

        Raises:
            UserError: Always.
        """
        raise cause(ex) or UserError(explain(message)) from ex


def cause(error: BaseException | None) -> UserError | None:
    """Find the UserError that jsonargparse wrapped in errors of its own, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def explain(message: str) -> str:
    """Shorten a message of jsonargparse to the place and the mistake, and add a suggestion.

    >>> explain("unrecognized arguments: --trainer.max_epoch 3")
    "unknown option '--trainer.max_epoch'. Did you mean '--trainer.max_epochs'?"
    """
    place = ".".join(_PLACE.findall(message))
    if missing := _MISSING.search(message):
        what = f"{place}: {missing[1]} is missing" if place else f"{missing[1]} is missing"
        return f"{what}. A config has all that is needed: --config FILE (`ltbench list configs`)."
    if stray := _STRAY.match(message):
        return (
            f"{stray[0]}. If these are what a pattern such as runs/NAME-* stands for, it fits more "
            "than one: name the one that you mean."
        )
    unknown = _UNKNOWN.search(message)
    if unknown is None:
        lines = [line.strip(" -") for line in message.splitlines() if not _NOISE.match(line)]
        given = re.search(r"^\s*Given value: (.{1,60})$", message, re.MULTILINE)
        told = f" (given: {given[1]})" if given else ""
        return f"{place + ': ' if place else ''}{'; '.join(filter(None, lines))}{told}"
    name = next(group for group in unknown.groups() if group)
    kind = "class" if unknown["name"] else "option"
    where = f" in {place}" if place else ""
    near = _nearest(name, unknown["name"] is not None)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"unknown {kind} '{name}'{where}.{hint}"


def check_config(path: Path) -> dict[str, Any]:
    """Read a config, and refuse a file that is none by its name, which jsonargparse does not tell.

    Raises:
        UserError: It is missing, no text, no YAML, or no config.
    """
    if not path.is_file():
        raise UserError(f"there is no config {path}: `ltbench list configs` names those at hand.")
    try:
        found = parse_yaml(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no readable config: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no config: it needs the keys trainer, model and data.")
    check_settings(found, str(path))
    return found


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot be a config.

    Args:
        settings: What a config holds.
        where: What to call it in a message.

    Raises:
        UserError: One of its parts is no mapping, or it names a class of a package that nobody
            vouched for.
    """
    for key, value in settings.items():
        if key not in ("trainer", "model", "data"):
            continue
        if not isinstance(value, dict) and not (isinstance(value, str) and key != "trainer"):
            raise UserError(f"{where}: '{key}' holds no settings but {value!r:.40}: indent them.")
        require_trusted(value, where)


def check_argument(option: str, value: str) -> dict[str, Any]:
    """Read an argument as a config would hold it, nested by the dots in its option.

    Raises:
        UserError: It names a class of a package that nobody vouched for.
    """
    try:
        given = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):  # which is told when it is parsed in earnest
        return {}
    *above, last = option.removeprefix("--").split(".")
    found = {last: given}
    require_trusted(found, option)
    for key in reversed(above):
        found = {key: found}
    return found


def arguments_of(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return the arguments that a config gives the class of a part (``model``, ``data``)."""
    found = settings.get(part)
    found = found.get("init_args", found) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


def whole_numbers_first() -> None:
    """Let ``limit_train_batches: 1`` mean one batch, never all of them.

    Lightning asks typing for the union of int and float in both orders and gets one for both, now
    this and now that; where float comes first, the parser reads 1 as 1.0, a share.
    """
    types = inspect.unwrap(Trainer.__init__).__annotations__
    for split in ("train", "val", "test", "predict"):
        types[f"limit_{split}_batches"] = int | float | None


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse what Lightning finds out late or not at all, or what would make a result another one.

    Args:
        settings: Those of the trainer, resolved.

    Raises:
        UserError: Naming the first.
    """
    epochs, every = settings["max_epochs"], settings["check_val_every_n_epoch"]
    parts = [settings["limit_val_batches"], settings["limit_test_batches"]]
    callbacks = settings["callbacks"] or []
    named = [str(c.get("class_path")) for c in (callbacks if isinstance(callbacks, list) else [])]
    for wrong, told in (
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
            f"min_epochs is above max_epochs {epochs}, where the schedules end",
        ),
        (
            settings["max_time"] is not None,
            "max_time would report an unfinished training as a result. To end a run at a time use "
            "`timeout 2h ltbench fit ...`: the same command goes on from its last checkpoint",
        ),
        (
            settings["overfit_batches"],
            "overfit_batches replaces the order of the images; use limit_train_batches",
        ),
        (
            any(isinstance(part, float) and part != 1 for part in parts),
            "limit_val_batches and limit_test_batches take a whole number of batches",
        ),
        (
            "://" in str(settings["default_root_dir"]) or not settings["default_root_dir"],
            "default_root_dir must be a folder of this machine, such as runs",
        ),
        (
            any(name.endswith("StochasticWeightAveraging") for name in named),
            "StochasticWeightAveraging replaces the schedule of the method; use model.ema_decay",
        ),
    ):
        if wrong:
            raise UserError(f"trainer.{told}.")
    if any(isinstance(part, int) for part in parts):
        _log.warning("warning: trainer.limit_..._batches is set: not all images are evaluated.")


def null_of(class_: type, arguments: Mapping[str, object]) -> str | None:
    """Return an argument that is null though its class gives it another type, if there is one."""
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
    found = dashes + ".".join([*path, near]) if near else None
    return None if found == name else found


_GROUPS = ("trainer", "model", "data", "seed_everything", "name", "fresh", "output", "ckpt_path")


def _classes() -> Iterator[type]:
    pending: list[type] = list(CHOICES)
    while pending:
        found = pending.pop()
        yield found
        pending.extend(found.__subclasses__())


def _arguments() -> Iterator[str]:
    for found in (Trainer, *_classes()):
        yield from inspect.signature(found).parameters

"""From a config to a model, its data, and the identity of their run. Nothing is trained here."""

import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

import ltbench.data.text
import ltbench.data.transforms
import ltbench.methods  # noqa: F401  (a config may name any class of these without its module)
from ltbench import records, trust
from ltbench.data.base import DataModule
from ltbench.data.datamodule import LongTailDataModule
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.methods.parts import stages
from ltbench.runs import gpus
from ltbench.runs.callbacks.refused import require_harmless
from ltbench.runs.context import RunContext
from ltbench.runs.parsing import (
    Parser,
    arguments_of,
    cause,
    check_argument,
    check_config,
    check_settings,
    check_trainer,
    explain,
    null_of,
    whole_numbers_first,
)
from ltbench.shipped import existing_config

# What the model takes from the data: an attribute of the data module -> an argument of the model.
LINKS = {"num_classes": "num_classes", "channels": "in_chans"}

# Defaults that differ from Lightning's.
TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}

FREE = ("backbone_args", "dict_kwargs", "loss_args")  # dictionaries of any names
CONFIG_OPTIONS = ("-c", "--config")

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """A config, built.

    Attributes:
        model: The method, with its initial weights.
        data: Its data module, before :meth:`~DataModule.setup`.
        config: The resolved config: seed_everything, trainer, model, data and name.
        trainer: Arguments of the trainer, including the user's callbacks and loggers.
        options: Options of the command: ``fresh``, ``output``, ``ckpt_path``, ...
    """

    model: Method
    data: DataModule
    config: dict[str, Any]
    trainer: dict[str, Any]
    options: Namespace

    @cached_property
    def training(self) -> RunContext:
        """The context of a run that trains it.

        Raises:
            UserError: A network that it starts from is missing, or its run has not finished.
        """
        starts = {role: stages.identity(start) for role, start in self.model.starts.items()}
        return self._context(starts)

    @cached_property
    def evaluation(self) -> RunContext:
        """The context of a run that only evaluates it, which needs no networks to start from."""
        return self._context({})

    @property
    def job_id(self) -> str:
        """Hash of everything that could change the result of training it."""
        return self.training.job_id

    @property
    def folder(self) -> Path:
        """Where training it writes its files."""
        return self.training.folder.path

    def _context(self, starts: dict[str, dict[str, Any]]) -> RunContext:
        name, model = self.config["name"], self.config["model"]
        placed = {**self.config, "trainer": _placed(self.config["trainer"])}
        job_id = records.job_id(placed, self.data.source.fingerprint, starts)
        linked = {argument: getattr(self.data, name) for name, argument in LINKS.items()}
        made_from = {"class_path": model["class_path"], **model.get("init_args", {}), **linked}
        root = Path(self.config["trainer"]["default_root_dir"])
        folder = records.RunFolder(root / f"{name}-{job_id[:8]}")
        return RunContext(name, job_id, folder, self.config, starts, made_from | starts)


def build(
    config: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    command: str = "fit",
) -> Experiment:
    """Build the model and the data of a config; seeds the process with ``seed_everything``.

    Args:
        config: Path of a config, its name in ``ltbench list configs``, or its content; None if
            ``overrides`` name one.
        overrides: Settings by their dotted names, such as ``{"model.loss": "vs_loss"}``, or words
            of the command line, such as ``["--model.loss", "vs_loss"]``.
        command: The command whose options the words may have.

    Raises:
        UserError: The config has a mistake, or the model or the data refuse an argument.
    """
    if isinstance(overrides, Mapping):
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in overrides.items()}
        overrides = [f"--{name}={text}" for name, text in texts.items()]
    if isinstance(config, Mapping):
        check_settings(config, "the config")
        words, linked = _checked(overrides)
        words = ["--config", json.dumps(config, default=str), *words]
        linked = {**arguments_of(config, "model"), **linked}
    else:
        named = ["--config", str(config)] if config is not None else []
        words, linked = _checked([*named, *overrides])
    parser = _parser(command)
    parsed = parser.parse_args(words)
    seed = parsed.seed_everything
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {seed}; it must be a whole number, 0 to 2^32 - 1.")
    if command.startswith("fit"):
        callbacks = parsed.trainer.callbacks or []
        require_harmless(callbacks if isinstance(callbacks, list) else [callbacks])
    resolved = _resolved(parser, parsed)
    if parsed.output and command in ("fit", "validate", "test"):
        raise UserError(f"--output is for predict and data; {command} does not write such a file.")
    L.seed_everything(seed, workers=True)
    built = _instantiated(parser, parsed)
    for name, argument in LINKS.items():
        value = getattr(built.data, name)
        if linked.get(argument, value) != value:
            raise UserError(
                f"model.{argument} is {linked[argument]}, but this data has {value}. Leave it out: "
                "it is taken from the data."
            )
    if statistics := built.model.input_statistics:
        built.data.normalise_for(statistics.mean, statistics.std)
    return Experiment(built.model, built.data, resolved, {**built.trainer}, parsed)


def build_part(part: str, base: type[T], settings: Mapping[str, Any]) -> T:
    """Build only the model or only the data of a config.

    Args:
        part: Its key in the config.
        base: Its base class.
        settings: What the config holds under that key.

    Raises:
        UserError: The settings have a mistake, or the class refuses them.
    """
    check_settings({part: settings}, part)
    parser = Parser()
    parser.add_lightning_class_args(base, part, subclass_mode=True)  # type: ignore[arg-type]
    parsed = parser.parse_object({part: records.canonical(settings)})
    return _instantiated(parser, parsed)[part]  # type: ignore[no-any-return]


def device_of(name: str | None) -> torch.device:
    """Return a device by its name; default: the first GPU, else the CPU.

    Raises:
        UserError: There is no such device here, or none of those that this process was given.
    """
    if name is None:
        gpus.require_named(torch.cuda.device_count())
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name} cannot be used here: {reason:.150}") from error
    return device


def _placed(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trainer with the devices that ``auto`` stands for on this machine.

    One device and four are different runs. Strategy ``auto`` follows from devices and nodes.
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if accelerator == "auto":
        accelerator = _AcceleratorConnector._choose_auto_accelerator()
    if devices in ("auto", -1, "-1"):
        kinds = {"gpu": CUDAAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}
        devices = kinds.get(accelerator, CPUAccelerator).auto_device_count()
    if isinstance(devices, str) and devices.isdecimal():  # as the command line has it
        devices = int(devices)
    return {**trainer, "accelerator": accelerator, "devices": devices}


def _instantiated(parser: Parser, parsed: Namespace) -> Namespace:
    _require_plain_options(parsed.as_dict())
    try:
        built: Namespace = parser.instantiate(parsed)
    except ValueError as error:  # a constructor's, wrapped in errors of jsonargparse
        raise cause(error) or UserError(explain(str(error))) from error
    return built


def _require_plain_options(settings: object, where: str = "") -> None:
    """Refuse a class in a free dictionary, where it would pass for a value.

    Raises:
        UserError: Naming the place.
    """
    items = settings.items() if isinstance(settings, dict) else []
    for key, value in items:
        place = f"{where}.{key}".removeprefix(".")
        if key in FREE:
            trust.require_plain(value, place)
        else:
            _require_plain_options(value, place)
    for item in settings if isinstance(settings, list) else []:
        _require_plain_options(item, where)


def _parser(command: str) -> Parser:
    """Return the parser of a config and of the options of a command."""
    whole_numbers_first()
    parser = Parser(
        prog=f"ltbench {command}",
        description=None,
        dump_header=[f"lightning.pytorch=={L.__version__}"],
        allow_abbrev=False,
    )
    parser.add_argument(*CONFIG_OPTIONS, action="config", help="A config: a file, or its name.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="Seed of the run.")
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(Method, "model", subclass_mode=True)
    parser.add_lightning_class_args(LongTailDataModule, "data", subclass_mode=True)
    parser.add_argument("--name", type=str | None, help="Name of the run; default: the config's.")
    parser.add_argument("--fresh", type=bool, default=False, help="Start over, even if done.")
    parser.add_argument("--output", type=str | None, help="File that predict or data writes.")
    for name, argument in LINKS.items():
        parser.link_arguments(f"data.{name}", f"model.init_args.{argument}", apply_on="instantiate")
    method = command if hasattr(L.Trainer, command) else "fit"
    objects = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
    parser.add_method_arguments(L.Trainer, method, skip=objects)
    return parser


def _checked(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Check what jsonargparse does not check, or too late.

    Returns:
        The words, with files for the names of configs and bare names for our classes; and values,
        in these words or the configs, of arguments that the model takes from the data.

    Raises:
        UserError: A config cannot be read, or is not one.
    """
    checked, linked = list(words), dict[str, Any]()
    for at, (word, following) in enumerate(pairwise([*words, ""])):
        option, equals, value = word.partition("=")
        value = value if equals else following
        if option in CONFIG_OPTIONS and value:
            path = existing_config(value)
            settings, value = check_config(path), str(path)
        elif option.startswith(("--model", "--data", "--trainer")):
            settings, value = check_argument(option, value), records.canonical(value)
        else:
            continue
        if equals:
            checked[at] = f"{option}={value}"
        elif at + 1 < len(words):
            checked[at + 1] = value
        arguments = arguments_of(settings, "model")
        linked |= {name: arguments[name] for name in LINKS.values() if name in arguments}
    return checked, linked


def _resolved(parser: Parser, parsed: Namespace) -> dict[str, Any]:
    """Return the complete config, which identifies the run.

    Raises:
        UserError: A setting that no run can have.
    """
    try:
        text = parser.dump(parsed, skip_link_targets=False, skip_unset=False, format="yaml")
    except ValueError as error:
        reason = explain(str(error)).partition(";")[0]
        raise UserError(f"a default value cannot be written to config.yaml: {reason}.") from error
    whole = yaml.safe_load(text)
    check_trainer(whole["trainer"])
    files = [file for file in parsed.config or [] if file]
    name = Path(str(files[0])).stem if files else "run"
    name = records.plain_name(name if whole["name"] is None else whole["name"], "--name")
    for part in ("model", "data"):
        class_ = pkgutil.resolve_name(whole[part]["class_path"])
        if null := null_of(class_, whole[part].get("init_args", {})):
            raise UserError(f"{part}.{null} is null, but it needs a value.")
    resolved = {
        key: records.canonical(whole[key])
        for key in ("seed_everything", "trainer", "model", "data")
    }
    for argument in LINKS.values():
        resolved["model"].get("init_args", {}).pop(argument, None)
    return {**resolved, "name": name}

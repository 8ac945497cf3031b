"""The heavy half of the command line: fit, validate, test and predict through LightningCLI."""

import logging
import pkgutil
import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from rich.console import Console

import ltbench.data.datamodule
import ltbench.data.text
import ltbench.data.transforms
import ltbench.methods  # noqa: F401  (a config may name any class of these without its module)
from ltbench import records
from ltbench.data.base import DataModule
from ltbench.errors import UserError
from ltbench.methods import stages
from ltbench.methods.base import Method, method_name
from ltbench.runs.callbacks.anomalies import Anomalies
from ltbench.runs.callbacks.predictions import KeepPredictions
from ltbench.runs.callbacks.progress import Progress
from ltbench.runs.callbacks.run_record import RunRecord
from ltbench.runs.checkpoints import (
    RunCheckpoint,
    WholeCheckpoints,
    require_evaluable,
    require_resumable,
)
from ltbench.runs.parsing import (
    Parser,
    arguments_of,
    cause,
    check_argument,
    check_config,
    check_trainer,
    explain,
    null_of,
    whole_numbers_first,
)
from ltbench.runs.result_table import result_table

MOST_LETTERS = 200  # of a name: a file system takes 255

# What the model takes from the data: an attribute of the data module -> an argument of the model.
LINKS = {"num_classes": "num_classes", "channels": "in_chans"}


class TrainingCLI(LightningCLI):
    """LightningCLI with run folders named by their config, and nothing taken from a checkpoint.

    A run lies in ``<trainer.default_root_dir>/<name>-<job id>``. ``fit`` with the same config goes
    on from that folder's last checkpoint, or shows its result where the run is done.
    """

    config_dump: dict[str, Any]
    writes: ClassVar[tuple[str, ...]] = ("predict",)  # commands that take --output

    def __init__(self, args: list[str]) -> None:
        """Parse ``args``, build everything and run the sub-command."""
        quiet()
        whole_numbers_first()
        super().__init__(
            Method,
            DataModule,
            save_config_callback=None,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},
            trainer_defaults={
                "default_root_dir": "runs",
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "log_every_n_steps": 10,
            },
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is ours, and take from the data what the model must know of it."""
        parser.add_argument(
            "--name", type=str | None, help="Name of the run; default: the config's."
        )
        parser.add_argument("--fresh", type=bool, default=False, help="Start over, even if done.")
        parser.add_argument("--output", type=str | None, help="File that predict or data writes.")
        parser.set_defaults({"data": {"class_path": "LongTailDataModule"}})
        for ours, theirs in LINKS.items():
            parser.link_arguments(
                f"data.{ours}", f"model.init_args.{theirs}", apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse exactly ``args``; Lightning would warn that ``sys.argv`` exists as well.

        Raises:
            UserError: An argument that is wrong, or no seed.
        """
        self.given: dict[str, Any] = {}
        for word, following in pairwise([*map(str, args), ""]):
            option, equals, value = word.partition("=")
            value, found = value if equals else following, {}
            if option in ("--config", "-c") and value:
                found = check_config(Path(value))
            elif option.startswith(("--model", "--data", "--trainer")):
                found = check_argument(option, value)
            arguments = arguments_of(found, "model")
            self.given |= {name: arguments[name] for name in LINKS.values() if name in arguments}
        self.config = parser.parse_args(args)
        seed = self.config[self.config.subcommand].seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(
                f"seed_everything is {seed}; a run needs a whole number, 0 to 2^32 - 1."
            )

    def _parse_ckpt_path(self) -> None:
        """Take nothing from a checkpoint: the config alone says what is built."""

    def instantiate_classes(self) -> None:
        """Build everything, and let a user's mistake through as it was raised.

        Raises:
            UserError: What a constructor refused; jsonargparse buries it in errors of its own.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise cause(error) or UserError(explain(str(error))) from error
        for ours, theirs in LINKS.items():
            found = getattr(self.datamodule, ours)
            if self.given.get(theirs, found) != found:
                raise UserError(
                    f"model.{theirs} is {self.given[theirs]}, but this data has {found}: leave it "
                    "out, and it is taken from the data."
                )

    def before_instantiate_classes(self) -> None:
        """Keep the resolved config, which names the run."""
        self._dump_config()
        check_trainer(self.config_dump["trainer"])
        name = self.config_dump["name"]
        if name is not None and (Path(name).name != name or len(name) > MOST_LETTERS):
            raise UserError(
                f"--name '{name:.40}' is no name of a run folder: at most {MOST_LETTERS} letters, "
                "and no slash."
            )
        if self.config_dump["output"] and self.subcommand not in self.writes:
            raise UserError(f"--output is for predict and data: {self.subcommand} writes no file.")
        for part in ("model", "data"):
            found = self.config_dump[part]
            class_ = pkgutil.resolve_name(found["class_path"])
            if null := null_of(class_, found.get("init_args", {})):
                raise UserError(f"{part}.{null} is null; it needs a value.")
        kept = ("seed_everything", "trainer", "model", "data")
        self.resolved = {key: records.canonical(self.config_dump[key]) for key in kept}
        for linked in LINKS.values():
            self.resolved["model"].get("init_args", {}).pop(linked, None)
        self.resolved["name"] = self.config_dump["name"] or self._config_name()

    def _config_name(self) -> str:
        files = self.config[self.subcommand].config or []
        return Path(str(files[0])).stem if files else "run"

    def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401
        """Add the record, the checkpoints (last, and best on validation), curves and progress."""
        model = self.resolved["model"]
        # Only training needs the networks that it starts from.
        starts = {
            role: stages.identity(trained)
            for role, trained in self.model.starts.items()
            if self.subcommand == "fit"
        }
        self.model.config = {
            "class_path": model["class_path"],
            **model.get("init_args", {}),
            **{theirs: getattr(self.datamodule, ours) for ours, theirs in LINKS.items()},
            **starts,
        }
        name = self.resolved["name"]
        job_id = records.job_id(self.resolved, self.datamodule.source.fingerprint, starts)
        self.folder = Path(self.resolved["trainer"]["default_root_dir"]) / f"{name}-{job_id[:8]}"
        identity = {
            "job_id": job_id,
            "name": name,
            "method": method_name(type(self.model)),
            "dataset": self.datamodule.source_name,
            "stage": self.model.stage,
            "lineage": [{"role": role, **found} for role, found in starts.items()],
            "config": self.resolved,
        }
        self.model.folder = self.folder if self.subcommand == "fit" else None
        self.record = RunRecord(self.folder, identity, self.model.monitor)
        self.predictions = KeepPredictions(self.folder)
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        callbacks: list[Callback] = [] if config["enable_progress_bar"] is False else [Progress()]
        self.datamodule.setup()
        if self.subcommand == "fit":
            given = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
            ours = TensorBoardLogger(self.folder, name="", version="")
            config["logger"] = [ours, *(logger for logger in given if isinstance(logger, Logger))]
            # "best" first: the state that "last" saves must know of the best of the same epoch.
            self.checkpoints = self._checkpoints()
            callbacks += [Anomalies(), self.record, self.predictions]
            callbacks += reversed(self.checkpoints.values())
        else:
            config["logger"] = config["enable_checkpointing"] = False
            if self.subcommand == "predict":  # one table of all images comes from one process
                config |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
            callbacks += [self.record] if self.subcommand == "test" else []
        try:
            trainer = self._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as e:
            raise UserError(f"trainer: {str(e).splitlines()[0]}") from e
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # a user's own
                callback.dirpath = str(self.folder / "extra_checkpoints")
        # A run that is refused before its first step leaves nothing behind: see the record.
        self.record.loggers, trainer.loggers = trainer.loggers, []
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        # A signal ends a run as Ctrl-C does (see `cli`). Lightning's own handlers end it with code
        # 0, talk to other ranks in the middle of a step, and under Slurm save one checkpoint for
        # all runs of a folder, from which every one of them would then go on.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as stop:
            # Lightning turns Ctrl-C into an exit of its own, after it has cleaned up.
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None
            raise

    def _checkpoints(self) -> dict[str, RunCheckpoint]:
        where: dict[str, Any] = {
            "dirpath": self.folder / "checkpoints",
            "enable_version_counter": False,
        }
        kept = {"last": RunCheckpoint(**where, filename="last", save_on_train_epoch_end=True)}
        if "val" in self.datamodule.splits and self.model.monitor:
            kept["best"] = RunCheckpoint(
                **where, filename="best", monitor=self.model.monitor, mode="max"
            )
        return kept

    def fit(
        self,
        model: Method,
        datamodule: DataModule,
        ckpt_path: str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train, test the last and the best-on-validation weights, and print the table."""
        console = Console(quiet=not self.trainer.is_global_zero)
        fresh = self.config[self.subcommand].fresh
        if fresh and self.trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
        record = self.folder / "record.json"
        # Every rank decides alike, also one that looks before the first has cleared the folder.
        done = not fresh and record.exists() and records.read_record(record)["status"] == "done"
        if done:
            console.print(f"{self.folder} is done already; --fresh true starts over.")
        else:
            last = self.folder / "checkpoints" / "last.ckpt"
            if ckpt_path is None and last.exists() and not fresh:
                console.print(f"Going on from {last}.")
                ckpt_path = str(last)
            if ckpt_path is not None:
                require_resumable(Path(ckpt_path))
            records.require_place(record)
            if self.trainer.is_global_zero:
                records.clear_parts(self.folder)
            # An image that cannot be read is found before training, not after it.
            for split in {"val", "test"} & self.datamodule.splits.keys():
                if self.datamodule.source.in_memory:
                    self.datamodule.dataset(split)
            try:
                self.trainer.fit(
                    model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True
                )
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                if ckpt_path is None or self.record.begun:
                    raise
                raise UserError(
                    f"cannot go on from {ckpt_path} ({error!r:.200}): --fresh true starts over."
                ) from error
            if not self.record.begun and Path(ckpt_path or last) != last:
                raise UserError(
                    f"{ckpt_path} has been trained to the end: `ltbench test` measures it."
                )
            self._evaluate_selections()
        if self.trainer.is_global_zero:
            console.print(result_table(records.read_record(record)))
            console.print(f"Record: {record}")

    def _evaluate_selections(self) -> None:
        """Test the last and the best weights, as they lie on disk, and close the record."""
        self.trainer.loggers = []
        for selection, checkpoint in self.checkpoints.items():
            self.record.select(selection)
            self.predictions.selection = selection
            where: dict[str, Any] = {
                "model": self.model,
                "datamodule": self.datamodule,
                "ckpt_path": checkpoint.best_model_path,
                "verbose": False,
                "weights_only": True,
            }
            if checkpoint.best_model_path and "val" in self.datamodule.splits:
                self.trainer.validate(**where)
            if checkpoint.best_model_path and "test" in self.datamodule.splits:
                self.trainer.test(**where)
        self.record.finish(self.trainer, self.model)

    def validate(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Evaluate a checkpoint on the validation split."""
        self._need_checkpoint()
        if "val" not in self.datamodule.splits:
            raise UserError("there is no validation split: set data.val_fraction above 0.")
        self.trainer.validate(**{**kwargs, "weights_only": True})

    def test(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Evaluate a checkpoint on the test split and print the table; nothing is written."""
        self._need_checkpoint()
        self.record.select("given")
        self.trainer.test(**{**kwargs, "verbose": False, "weights_only": True})
        table = result_table(self.record.summary(self.trainer, self.model, "evaluated"))
        Console(quiet=not self.trainer.is_global_zero).print(table)

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Let the method predict, and write what it says: a CSV row an image, for a classifier."""
        self._need_checkpoint()
        kwargs.pop("return_predictions", None)
        output = self.config[self.subcommand].output
        self.model.check_output(output)
        batches = self.trainer.predict(**{**kwargs, "weights_only": True})
        Console().print(self.model.write_predictions(batches or [], output))

    def _need_checkpoint(self) -> None:
        path = self.config[self.subcommand].ckpt_path
        if not path:
            raise UserError(f"{self.subcommand} needs --ckpt_path FILE: a run keeps checkpoints/.")
        require_evaluable(Path(path))


def quiet() -> None:
    """Leave Lightning's notices out: what matters of them is in the record."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning calls a name that torch has deprecated; a user can do nothing about it.
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
    for notice in (
        "Be aware that when using `ckpt_path`",  # an evaluation takes the weights alone
        "You're using the WeightAveraging callback, but loading",  # those are the averaged ones
        "Total length of `list` across ranks is zero",  # training without a validation split
        "The number of training batches",  # fewer than log_every_n_steps
        ".*does not have many workers",  # images in memory need none
        "It is recommended to use `self.log.* sync_dist=True",  # metrics come from summed counts
        ".* exists and is not empty",  # a run that goes on
    ):
        warnings.filterwarnings("ignore", notice, UserWarning)

"""The heavy half of the command line: fit, validate, test and predict through LightningCLI."""

import shutil
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

import ltbench.methods  # noqa: F401  (so that a config may name a method without its module)
from ltbench import records
from ltbench.callbacks import Progress, RunRecord, result_table
from ltbench.data.datamodule import LongTailDataModule
from ltbench.errors import UserError
from ltbench.methods.base import ClassificationModule

BEST = "val/mean_recall"


class Parser(LightningArgumentParser):
    """A parser whose errors are one line with the nearest valid name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake as a UserError.

        Raises:
            UserError: Always.
        """
        raise UserError(message) from ex


class TrainingCLI(LightningCLI):
    """LightningCLI with run folders named by their config, and nothing taken from a checkpoint.

    A run lies in ``<trainer.default_root_dir>/<name>-<job id>``. ``fit`` with the same config goes
    on from that folder's last checkpoint, or shows its result where the run is done.
    """

    config_dump: dict[str, Any]

    def __init__(self, args: list[str]) -> None:
        """Parse ``args``, build everything and run the sub-command."""
        super().__init__(
            ClassificationModule,
            LongTailDataModule,
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
        parser.add_argument("--name", type=str | None, help="Name of the run; default: the config's.")
        parser.add_argument("--fresh", type=bool, default=False, help="Start over, even if done.")
        parser.add_argument("--output", type=str, default="predictions.csv", help="For predict.")
        for ours, theirs in (("num_classes", "num_classes"), ("channels", "in_chans")):
            parser.link_arguments(
                f"data.{ours}", f"model.init_args.{theirs}", apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse exactly ``args``; Lightning would warn that ``sys.argv`` exists as well."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Take nothing from a checkpoint: the config alone says what is built."""

    def before_instantiate_classes(self) -> None:
        """Name the run and its folder."""
        self._dump_config()
        kept = ("seed_everything", "trainer", "model", "data")
        self.resolved = {key: self.config_dump[key] for key in kept}
        name = self.config_dump["name"] or self._config_name()
        self.job_id = records.job_id(self.resolved)
        self.resolved["name"] = name
        root = self.config_dump["trainer"]["default_root_dir"]
        self.folder = Path(root) / f"{name}-{self.job_id[:8]}"

    def _config_name(self) -> str:
        files = self.config[self.subcommand].config or []
        return Path(str(files[0])).stem if files else "run"

    def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401
        """Add the record, the checkpoints (last, and best on validation), curves and progress."""
        self.model.config = _flat(self.resolved["model"])
        method = self.resolved["model"]["class_path"].split(".")[-2]
        identity = {
            "job_id": self.job_id,
            "name": self.resolved["name"],
            "method": method,
            "dataset": self.datamodule.source_name,
            "stage": "train",
            "lineage": [],
            "config": self.resolved,
        }
        self.record = RunRecord(self.folder, identity)
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        callbacks: list[Callback] = [] if config["enable_progress_bar"] is False else [Progress()]
        if self.subcommand == "fit":
            config["logger"] = TensorBoardLogger(self.folder, name="", version="")
            callbacks += [self.record, *self._checkpoints()]
        else:
            config["logger"] = False
        return self._instantiate_trainer(config, callbacks)

    def _checkpoints(self) -> list[ModelCheckpoint]:
        where = {"dirpath": self.folder / "checkpoints", "enable_version_counter": False}
        self.last = ModelCheckpoint(**where, filename="last", save_on_train_epoch_end=True)
        self.best = ModelCheckpoint(**where, filename="best", monitor=BEST, mode="max")
        self.datamodule.setup()
        return [self.last, self.best] if "val" in self.datamodule.splits else [self.last]

    def fit(
        self,
        model: ClassificationModule,
        datamodule: LongTailDataModule,
        ckpt_path: str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train, test the last and the best-on-validation weights, and print the table."""
        console = Console()
        last = self.folder / "checkpoints" / "last.ckpt"
        config = self.config[self.subcommand]
        if config.fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        record = self.folder / "record.json"
        if record.exists() and records.read_record(record)["status"] == "done":
            console.print(f"{self.folder} is done already; --fresh true starts over.")
        else:
            if ckpt_path is None and last.exists():
                console.print(f"Going on from {last}.")
                ckpt_path = str(last)
            dump = yaml.safe_dump(self.resolved, sort_keys=False).encode()
            records.write_whole(self.folder / "config.yaml", lambda file: file.write(dump))
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            self._test_selections(model, datamodule)
        console.print(result_table(records.read_record(record)))
        console.print(f"Record: {record}")

    def _test_selections(self, model: ClassificationModule, data: LongTailDataModule) -> None:
        for checkpoint in self.trainer.checkpoint_callbacks:
            assert isinstance(checkpoint, ModelCheckpoint)
            self.record.selection = str(checkpoint.filename)
            self.trainer.test(
                model, data, ckpt_path=checkpoint.best_model_path, verbose=False, weights_only=True
            )
        self.record.finish(self.trainer, model)


def _flat(model: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": model["class_path"], **model.get("init_args", {})}

"""``ltbench fit``, ``validate``, ``test``, ``predict``: a trainer runs an experiment."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from rich.console import Console

from ltbench import records
from ltbench.errors import UserError
from ltbench.runs import gpus
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
from ltbench.runs.context import RunContext
from ltbench.runs.experiment import Experiment, build
from ltbench.runs.notices import quiet
from ltbench.runs.result_table import result_table


def run_command(command: str, words: Sequence[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` with the words that follow it."""
    with quiet():
        experiment = build(None, words, command)
        try:
            COMMANDS[command](experiment)
        except SystemExit as stop:
            # Lightning turns Ctrl-C into an exit of its own, after cleaning up.
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None
            raise


def make_trainer(
    experiment: Experiment,
    context: RunContext,
    callbacks: Sequence[Callback] = (),
    **settings: Any,  # noqa: ANN401
) -> L.Trainer:
    """Make a trainer that writes checkpoints atomically and leaves signals to the program.

    Args:
        experiment: The experiment.
        context: The run.
        callbacks: Added to those of the config and to the progress bar.
        **settings: Replace those of the config.

    Raises:
        UserError: Lightning refuses an argument, or a GPU that this process was given is missing.
    """
    experiment.data.setup()
    settings = experiment.trainer | settings
    if settings["accelerator"] in ("auto", "gpu", "cuda"):
        gpus.require_named(torch.cuda.device_count())
    own = settings["callbacks"] or []
    own = own if isinstance(own, list) else [own]
    barred = any(isinstance(callback, ProgressBar) for callback in own)
    bar = [Progress()] if settings["enable_progress_bar"] is not False and not barred else []
    try:
        trainer = L.Trainer(**{**settings, "callbacks": [*own, *bar, *callbacks]})
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # the user's own
            callback.dirpath = str(context.folder.path / "extra_checkpoints")
    trainer.strategy.checkpoint_io = WholeCheckpoints(context, experiment.data)
    # A signal ends a run as Ctrl-C does (see `cli`). Lightning's own handlers exit with code 0,
    # contact other ranks in the middle of a step, and under Slurm save one checkpoint for all runs
    # of a folder, from which each of them would then resume.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


class Training:
    """A training with its record, its checkpoints (last, and best on validation) and curves.

    A run lies in ``<trainer.default_root_dir>/<name>-<job id>``. The same config resumes from the
    last checkpoint in that folder or, if the run is done, shows its result.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.context = experiment, experiment.training
        self.model, self.data = experiment.model, experiment.data
        self.record = RunRecord(self.context, self.model.monitor)
        self.data.setup()
        self.checkpoints = self._checkpoints()
        # "best" before "last", which saves the state of all callbacks, that of "best" included.
        callbacks = [Anomalies(), self.record, KeepPredictions(self.context)]
        self.trainer = make_trainer(
            experiment,
            self.context,
            [*callbacks, *reversed(self.checkpoints.values())],
            logger=self._loggers(),
        )
        # The record starts the loggers: a run refused before its first step leaves no files.
        self.record.loggers, self.trainer.loggers = self.trainer.loggers, []

    def _loggers(self) -> list[Logger]:
        loggers = self.experiment.trainer["logger"]
        own = loggers if isinstance(loggers, list) else [loggers]
        curves = TensorBoardLogger(self.context.folder.path, name="", version="")
        return [curves, *(logger for logger in own if isinstance(logger, Logger))]

    def _checkpoints(self) -> dict[str, RunCheckpoint]:
        where: Any = {"dirpath": self.context.folder.checkpoints, "enable_version_counter": False}
        last = RunCheckpoint(**where, filename="last", save_on_train_epoch_end=True)
        if "val" not in self.data.splits or not self.model.monitor:
            return {"last": last}
        best = RunCheckpoint(**where, filename="best", monitor=self.model.monitor, mode="max")
        return {"last": last, "best": best}

    def run(self) -> None:
        """Train, test the last and the best-on-validation weights, and print the table."""
        folder, console = self.context.folder, Console(quiet=not self.trainer.is_global_zero)
        if self._done():
            console.print(f"{folder.path} is done already; --fresh true starts over.")
        else:
            records.require_place(folder.record)
            with records.locked(folder.lock) if self.trainer.is_global_zero else nullcontext():
                if not self._done():  # by a process that had the lock until now
                    self._run(console)
        if self.trainer.is_global_zero:
            console.print(result_table(folder.read()))
            console.print(f"Record: {folder.record}")

    def _done(self) -> bool:
        # All ranks decide alike, even one that looks before the first has cleared the folder.
        folder = self.context.folder
        exists = not self.experiment.options.fresh and folder.record.exists()
        return exists and folder.read()["status"] == "done"

    def _run(self, console: Console) -> None:
        folder, options = self.context.folder, self.experiment.options
        if self.trainer.is_global_zero:
            folder.clear() if options.fresh else records.clear_parts(folder.path)
        last = folder.checkpoint("last")
        start = Path(options.ckpt_path) if options.ckpt_path is not None else None
        if start is None and last.exists() and not options.fresh:
            console.print(f"Going on from {last}.")
            start = last
        if start is not None:
            self.data.first_epoch = require_resumable(start, self.experiment)
        self._train(start)
        if not self.record.begun and start not in (None, last):
            raise UserError(f"the training of {start} is complete: evaluate it, `ltbench test`.")
        self._evaluate_selections()

    def _train(self, start: Path | None) -> None:
        # Fail before training, not after it, if an image cannot be read.
        for split in {"val", "test"} & self.data.splits.keys():
            if self.data.source.in_memory:
                self.data.dataset(split)
        try:
            self.trainer.fit(self.model, datamodule=self.data, ckpt_path=start, weights_only=True)
        except UserError as error:
            if not self.record.begun:
                raise
            last = self.context.folder.checkpoint("last")
            saved = last if last.exists() else "none yet"
            raise UserError(f"{error} Last good checkpoint: {saved}.") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if start is None or self.record.begun:
                raise
            raise UserError(
                f"cannot resume from {start} ({error!r:.200}): --fresh true starts over."
            ) from error

    def _evaluate_selections(self) -> None:
        """Test the last and the best weights, as saved, and complete the record."""
        self.trainer.loggers = []
        for selection, checkpoint in self.checkpoints.items():
            self.record.select(selection)
            where: dict[str, Any] = {
                "model": self.model,
                "datamodule": self.data,
                "ckpt_path": checkpoint.best_model_path,
                "verbose": False,
                "weights_only": True,
            }
            if checkpoint.best_model_path and "val" in self.data.splits:
                self.trainer.validate(**where)
            if checkpoint.best_model_path and "test" in self.data.splits:
                self.trainer.test(**where)
        self.record.finish(self.trainer, self.model)


def fit(experiment: Experiment) -> None:
    """Train, test and record a run."""
    Training(experiment).run()


def validate(experiment: Experiment) -> None:
    """Evaluate a checkpoint on the validation split."""
    trainer, checkpoint = _of_checkpoint(experiment, "validate")
    trainer.validate(**checkpoint, verbose=experiment.options.verbose)


def test(experiment: Experiment) -> None:
    """Evaluate a checkpoint on the test split and print the table; nothing is written."""
    record = RunRecord(experiment.evaluation, experiment.model.monitor)
    record.select("given")
    trainer, checkpoint = _of_checkpoint(experiment, "test", [record])
    trainer.test(**checkpoint, verbose=False)
    table = result_table(record.summary(trainer, experiment.model, "evaluated"))
    Console(quiet=not trainer.is_global_zero).print(table)


def predict(experiment: Experiment) -> None:
    """Write the predictions of the method: for a classifier, a CSV file with a row per image."""
    output = experiment.options.output
    experiment.model.check_output(output)
    # One process, so that there is one table of all images.
    alone: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer, checkpoint = _of_checkpoint(experiment, "predict", **alone)
    batches = trainer.predict(**checkpoint)
    Console().print(experiment.model.write_predictions(batches or [], output))


def _of_checkpoint(
    experiment: Experiment,
    command: str,
    callbacks: Sequence[Callback] = (),
    **settings: Any,  # noqa: ANN401
) -> tuple[L.Trainer, dict[str, Any]]:
    """Return a trainer, and the arguments with which it evaluates the user's checkpoint.

    Raises:
        UserError: The checkpoint is missing or damaged, or does not belong to this config.
    """
    path = experiment.options.ckpt_path
    if not path:
        raise UserError(f"{command} needs --ckpt_path FILE: a run folder has some in checkpoints/.")
    model, data = experiment.model, experiment.data
    data.setup()
    if command == "validate" and "val" not in data.splits:
        raise UserError("no validation split found: set data.val_fraction above 0.")
    require_evaluable(Path(path), experiment, same_images=command == "validate")
    off = {"logger": False, "enable_checkpointing": False}
    trainer = make_trainer(experiment, experiment.evaluation, callbacks, **off, **settings)
    where = {"model": model, "datamodule": data, "ckpt_path": path, "weights_only": True}
    return trainer, where


COMMANDS: dict[str, Callable[[Experiment], None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
}

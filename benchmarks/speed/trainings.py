"""The project's own training as a candidate: one `ltbench fit`, whose pauses belong to its rivals.

It has everything that belongs to a run: data, augmentation, loss, logging, record, checkpoints,
curves and the progress bar as on a terminal. Evaluation and what follows training are left out.
"""

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from timing import HERE, Candidate, Rounds

from ltbench.data.datasets import Batch
from ltbench.data.sources.base import Images, Labels
from ltbench.data.sources.cifar import Cifar10
from ltbench.methods.optimised import OptimisedModule
from ltbench.models import build_backbone
from ltbench.optim.step import Loss, Step
from ltbench.runs.callbacks.run_record import count_images
from ltbench.runs.experiment import build
from ltbench.runs.notices import quiet
from ltbench.runs.training import Training

CONFIGS = HERE.parents[1] / "configs"
TURN = 4  # steps that one of them takes before it is another's turn
LOGGED = 10  # steps until the first values are logged, for which TensorBoard is imported

# Rich draws nothing into a file; these make it take one for a terminal.
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}

Rivals = Callable[[L.Trainer, Any, Batch], dict[str, Candidate]]
"""Makes what takes turns with a training from its trainer, its method and one of its batches."""


class RandomImages(Cifar10):
    """Noise in the shape of CIFAR-10, where there is no folder of images."""

    display_name = "random images"

    @property
    def class_names(self) -> list[str]:
        """Numbers."""
        return [str(c) for c in range(self.num_classes)]

    def _load(self, split: str) -> tuple[Images, Labels]:
        labels = np.repeat(np.arange(self.num_classes), 5000 if split == "train" else 1)
        draws = np.random.default_rng(0)
        return draws.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8), labels


class Pauses(Callback):
    """Time the trainer as ``project``, and pause it every few steps for each rival to take as many.

    One rival is always there: ``augment``, the augmentation and normalisation of a raw batch. A
    warm-up, until the first values are logged, does not count.

    Args:
        rounds: Where the seconds go, by image.
        rivals: Makes the rivals.
        steps: Steps of a repeat.
        repeats: Repeats that count.
        each_repeat: Makes what is called once a repeat, as it takes more than a step to begin; it
            returns its units of work.

    Attributes:
        length: Steps of the training.
        project: What the trainer's own time counts as.
    """

    def __init__(
        self,
        rounds: Rounds,
        rivals: Rivals,
        steps: int,
        repeats: int,
        each_repeat: Callable[[L.Trainer, Any], Mapping[str, Callable[[], int]]] | None = None,
    ) -> None:
        self.rounds, self.make, self.steps = rounds, rivals, steps
        self.make_each_repeat = each_repeat
        self.warm = LOGGED
        self.length = self.warm + repeats * steps
        self.project = "project"
        self.rivals: dict[str, Candidate] = {}
        self.each_repeat: Mapping[str, Callable[[], int]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the first raw batch, for the rival that augments it."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        augment = data.on_after_batch_transfer

        def first(batch: Batch, dataloader_idx: int) -> Batch:
            del data.on_after_batch_transfer
            raw = copy.deepcopy(batch)
            self.rivals = {"augment": lambda: augment(copy.copy(raw), 0)}
            return augment(batch, dataloader_idx)  # type: ignore[no-any-return]

        data.on_after_batch_transfer = first

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Make the rivals of the first batch, and start the clocks."""
        if len(self.rivals) > 1:
            return
        self.rounds.device = pl_module.device
        self.rivals = self.make(trainer, pl_module, copy.deepcopy(batch)) | self.rivals
        if self.make_each_repeat:
            self.each_repeat = self.make_each_repeat(trainer, pl_module)
        self.order = list(self.rivals)
        self.images_of_a_call = count_images(batch)
        self.begun = trainer.fit_loop.total_batch_idx + 1
        self.taken = self.images = 0
        self.since = self.rounds.now()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Give the rivals their turn where it is time; runs after all other callbacks."""
        self.taken += 1
        self.images += count_images(batch)
        measured = trainer.fit_loop.total_batch_idx + 1 - self.warm  # steps since the warm-up
        whole = measured >= 0 and measured % self.steps == 0
        if self.taken < TURN and not whole:
            return
        self.rounds.count(self.project, self.images, self.since)
        bar = trainer.progress_bar_callback
        shown = bar.progress if isinstance(bar, RichProgressBar) else None
        if shown:
            shown.stop()  # its thread draws on, at the rivals' expense
        for name in self.order:
            self.rounds.turn(name, self.rivals[name], self.taken, self.images_of_a_call)
        self.order.reverse()  # whoever follows the trainer, or SAM, may find a colder cache
        if whole:
            for name, call in self.each_repeat.items() if measured else ():
                since = self.rounds.now()
                self.rounds.count(name, call(), since)
            self.rounds.close(keep=measured > 0)
            print(f"{self.rounds.title}: {measured} steps done", file=sys.__stdout__, flush=True)
        if shown:
            shown.start()
        self.taken = self.images = 0
        self.since = self.rounds.now()


class AtFirstBatch(Callback):
    """Call something when everything is in its place for the first step.

    Args:
        call: Given trainer, method and batch.
    """

    length = 1

    def __init__(self, call: Callable[[L.Trainer, Any, Batch], object]) -> None:
        self.call = call

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Call it."""
        self.call(trainer, pl_module, batch)


def train(
    config: Path,
    pauses: Pauses | AtFirstBatch,
    root: Path | None = None,
    starts: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Run `ltbench fit` on a config, for as long as the pauses want.

    Args:
        config: The config.
        pauses: What takes turns with it.
        root: Folder of images (``train/<class>/*``); default: random images.
        starts: Networks that the method starts from: argument -> arguments of
            :func:`~ltbench.models.build_backbone`, which gives weights as they start.
        **options: Further options of `fit`, with ``__`` for a dot.
    """
    words = {key.replace("__", "."): value for key, value in options.items()}
    words["trainer.max_steps"] = pauses.length
    if root:
        words |= {"data.source": "folder", "data.root": root}
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        patch.dict(os.environ, TERMINAL),
        redirect_stdout(nowhere),
    ):
        words["trainer.default_root_dir"] = folder
        for role, network in (starts or {}).items():
            words |= untrained(f"model.{role}", Path(folder, f"{role}.pt"), **network)
        experiment = build(config, {key: str(value) for key, value in words.items()})
        if root is None:
            experiment.data.source = RandomImages(Path())
        training = Training(experiment)
        # Behind every callback that belongs to the run; neither test nor record come after it.
        training.trainer.callbacks.append(pauses)  # type: ignore[attr-defined]
        with quiet():
            training.trainer.fit(training.model, datamodule=training.data)


def untrained(role: str, path: Path, name: str, **network: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write a network's first weights, and return the options that make a run start from them."""
    torch.save(build_backbone(name, 10, **network).state_dict(), path)
    return {f"{role}.path": path, f"{role}.backbone": name, f"{role}.backbone_args": network}


def bare_step(trainer: L.Trainer, method: OptimisedModule, batch: Batch) -> Candidate:
    """Return the method's training step on one cached batch, without data, trainer and logging.

    It has networks and an optimizer of its own, which start where the method's are.
    """
    twin = copy.deepcopy(method)
    twin.trainer = trainer
    twin.log = twin.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer = twin.optimizer(twin.parameter_groups())
    noise = torch.Generator(method.device)
    autocast = trainer.precision_plugin.forward_context

    def take_step() -> None:
        with autocast():
            prepared = twin.prepare_step(batch)

        def loss_of(part: Any) -> Loss:  # noqa: ANN401 - the method's own
            with autocast():
                return twin.loss_of(part)

        step = Step(twin, loss_of, prepared, len(batch["label"]), 0, 1, noise)
        twin.gradient_rule.backward(step)
        twin.on_before_optimizer_step(optimizer)
        optimizer.step()
        twin.after_step(step)

    return take_step

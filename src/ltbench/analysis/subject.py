"""The subject of an analysis: a trained network, the data of its run, and where results go."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltbench import seeding, untrusted
from ltbench.analysis.result import Output
from ltbench.data.base import DataModule
from ltbench.data.datasets import Batch, as_is
from ltbench.data.loading import Loader
from ltbench.errors import UserError, unknown_name
from ltbench.methods.classification import ClassificationModule
from ltbench.metrics.counts import Classes, by_frequency
from ltbench.records import Predictions
from ltbench.runs.checkpoints import check_checkpoint, load_weights, require_same_data
from ltbench.runs.experiment import build, device_of
from ltbench.runs.notices import quiet

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """A trained network in evaluation mode, and its data."""

    model: ClassificationModule  # the method, with weights
    data: DataModule  # set up
    trainer: L.Trainer  # connects the two
    device: torch.device
    output: Output
    sha256: str  # of the checkpoint

    @property
    def net(self) -> nn.Module:
        """The backbone with its classifier.

        Raises:
            UserError: The method has no single network.
        """
        net = getattr(self.model, "net", None)
        if not isinstance(net, nn.Module):
            raise UserError(f"{type(self.model).__name__} has no single network to analyse.")
        return net

    @cached_property
    def classes(self) -> Classes:
        """The classes of the run, with their training images."""
        counts = self.model.class_counts.cpu().numpy().astype(np.int64)
        return Classes(self.data.source.class_names, counts, self.data.head_mid_tail)

    def by_frequency(self, split: str) -> list[int]:
        """Return the classes with images in a split, by decreasing training images."""
        order = by_frequency(self.classes.counts)
        present = np.bincount(self.labels(split), minlength=self.model.num_classes) > 0
        return [int(c) for c in order if present[c]]

    def labels(self, split: str) -> Rows:
        """Return the labels of a split, (n,).

        Raises:
            UserError: There is no such split.
        """
        if split not in self.data.splits:
            raise unknown_name("split", split, self.data.splits)
        return self.data.splits[split].labels

    def label_of(self, word: str) -> int:
        """Return the label of a class by its name, else by its number.

        Raises:
            UserError: There is no such class.
        """
        names = list(self.classes.names)
        if word in names:
            return names.index(word)
        if word.isdecimal() and int(word) < len(names):
            return int(word)
        raise unknown_name("class", word, names[:20])

    def rows(self, split: str, label: int | None = None, limit: int | None = None) -> Rows:
        """Return positions of images in a split, ascending: all, or those of a class.

        If there are more than ``limit``, a seeded draw of them.
        """
        labels = self.labels(split)
        rows = np.flatnonzero(labels == label) if label is not None else np.arange(len(labels))
        if limit is None or limit >= len(rows):
            return rows
        seed = seeding.derive(seeding.run_seed(), "images", "all" if label is None else label)
        drawn = np.random.default_rng(seed).choice(rows, limit, replace=False)
        return np.sort(drawn)

    def batches(self, split: str, rows: Sequence[int] | Rows, size: int) -> Iterator[Batch]:
        """Yield images in the order of ``rows``: normalised, on the device, not augmented."""
        data = self.data
        loader = Loader(
            data.dataset(split),
            batch_size=size,
            sampler=np.asarray(rows).tolist(),
            collate_fn=as_is,
            num_workers=0 if data.source.in_memory else data.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=seeding.generator("cpu", seeding.run_seed(), "workers"),
        )
        for batch in loader:
            moved = {k: value.to(self.device, non_blocking=True) for k, value in batch.items()}
            yield {**moved, "image": data.normalise(moved["image"])}

    def logits(self, split: str, rows: Rows, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits (B, C) that predict, and the labels (B,), batch by batch."""
        with torch.inference_mode():
            for batch in self.batches(split, rows, size):
                outputs = self.model.outputs(batch["image"])
                yield outputs[self.model.heads[0]], batch["label"]


def load(output: Output, overrides: Sequence[str], device: str | None) -> Subject:
    """Build a run's method and data from its config, and load the weights of a checkpoint.

    Overrides are words of the command line of ``fit``, such as ``--data.root DIR``; the default
    device is the first GPU, else the CPU.

    Raises:
        UserError: The checkpoint is damaged, of another model or data, or not of a classifier.
    """
    place = output.place
    checkpoint = check_checkpoint(place.checkpoint)
    inert = ["--trainer.logger", "false", "--trainer.callbacks", "null"]
    with quiet():
        built = build(place.config, [*inert, *overrides])
        model, data = built.model, built.data
        if not isinstance(model, ClassificationModule):
            raise UserError(
                f"{type(model).__name__} is not a classifier: choose a run of a classifier."
            )
        data.setup()
        require_same_data(checkpoint, data, same_images=False)
        load_weights(model, checkpoint)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    trainer.datamodule = data  # type: ignore[attr-defined]
    model.trainer = trainer
    where = device_of(device)
    with untrusted.open_file(place.checkpoint) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Subject(model.to(where), data, trainer, where, output, sha256)


def predict(subject: Subject, split: str) -> Predictions:
    """Predict the images of a split."""
    rows = subject.rows(split)
    scores = [
        (*logits.float().softmax(1).max(1), labels)
        for logits, labels in subject.logits(split, rows, subject.data.eval_batch_size)
    ]
    confidence, prediction, label = (
        torch.cat(column).cpu().numpy() for column in zip(*scores, strict=True)
    )
    return Predictions(subject.data.splits[split].indices, label, prediction, confidence)

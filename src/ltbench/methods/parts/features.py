"""The features of a frozen network: computed once, kept beside its run, read by every head."""

import contextlib
import hashlib
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ltbench import records
from ltbench.data import profiles
from ltbench.data.base import DataModule
from ltbench.data.samplers import EvaluationSampler
from ltbench.methods.parts.stages import sha256
from ltbench.methods.parts.trainable import evaluation_mode
from ltbench.models import penultimate
from ltbench.records import RunFolder
from ltbench.records.identity import digest


class FrozenFeatures:
    """What the classifiers of a network see of all images of a split, which are not augmented.

    They are computed at first use, in evaluation mode. Those of a run's network are kept in its
    folder, in a file for each split that is named by what they are of: the weights, the images and
    how they are brought to the network, and the precision. Where that folder cannot be written to,
    they are computed again by each run.

    Args:
        net: The network. Until all features that are needed have been asked for, its backbone has
            the weights of ``checkpoint``.
        data: The images, set up.
        checkpoint: The weights, in a run folder; None keeps nothing on disk.
        device: Where they are computed.
        precision: Of the trainer.
        forward: Opens the context of a forward pass in that precision.
        summed: Adds up a tensor over ranks.
    """

    def __init__(
        self,
        net: nn.Module,
        data: DataModule,
        checkpoint: Path | None,
        device: torch.device,
        precision: str = "32-true",
        forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
        summed: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.net, self.data, self.checkpoint, self.device = net, data, checkpoint, device
        self.precision, self.forward, self.summed = precision, forward, summed
        self._of: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # an average of the method's weights shares them

    def of(self, split: str) -> Tensor:
        """Return the features (n, d) float32 of a split, of several heads side by side."""
        if split not in self._of:
            file = self._file(split)
            shape = (len(self.data.splits[split].labels), self._width)
            stored = _read(file, shape) if file else None
            mine = self._mine(split)
            missing = torch.tensor(int(stored is None), device=self.device)
            # Computing is collective, and ranks may have looked at different moments or disks.
            lacking = self.summed(missing)
            if stored is None or lacking:
                stored = self._computed(split, [*mine])
                if file and mine.rank == 0:
                    _keep(file, stored)
            self._of[split] = stored
        return self._of[split]

    @property
    def _width(self) -> int:
        return sum(head.in_features for head in penultimate.classifiers(self.net).values())

    def _mine(self, split: str) -> EvaluationSampler:
        """Return the rows of a split that this rank computes."""
        return EvaluationSampler(self.data.splits[split].labels)  # type: ignore[arg-type]

    @torch.no_grad()
    def _computed(self, split: str, rows: list[int]) -> Tensor:
        net, device = self.net.to(self.device), self.device
        features = torch.zeros(len(self.data.splits[split].labels), self._width, device=device)
        order, done = torch.tensor(rows, dtype=torch.long, device=device), 0
        with evaluation_mode(net), self.forward():
            for batch in self.data.evaluation_batches(split, device):
                part = penultimate.features(net, batch["image"])
                features.index_copy_(0, order[done : done + len(part)], part.float())
                done += len(part)
        return self.summed(features).cpu()  # each row is of one rank, so that sums are exact

    def _file(self, split: str) -> Path | None:
        if self.checkpoint is None:
            return None
        data, images = self.data, self.data.splits[split]
        first = data.normalise(data.source.images(images.part, images.indices[:8]))
        what = {
            "weights": sha256(self.checkpoint),
            "images": [data.source.fingerprint, images.part, profiles.index_hash(images.indices)],
            # Resolution, decoding, tokens and input statistics all show in these.
            "first": hashlib.sha256(first.contiguous().numpy().tobytes()).hexdigest(),
            "precision": self.precision,
        }
        return RunFolder.of_checkpoint(self.checkpoint).features / f"{split}-{digest(what)}.npy"


def _read(file: Path, shape: tuple[int, int]) -> Tensor | None:
    """Return stored features; None if there are none, or the file is damaged or not a plain one."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        if not stat.S_ISREG(file.lstat().st_mode):  # a pipe would wait, a link lead elsewhere
            return None
        stored = np.load(file, mmap_mode="c", allow_pickle=False)
        fits = stored.shape == shape and stored.dtype == np.float32
        if fits and np.isfinite(stored).all():
            return torch.from_numpy(stored)
    return None


def _keep(file: Path, features: Tensor) -> None:
    with contextlib.suppress(OSError):  # a folder of another user, a full disk: a loss of time
        records.write_whole(file, lambda stream: np.save(stream, features.numpy()))

"""A finished run, opened: its model with weights, its data, and predictions of new images."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from ltbench.data.base import DataModule, standardised
from ltbench.data.sources.decoding import Decoding, decode, fit, square
from ltbench.data.sources.folder import image_files
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.methods.classification import ClassificationModule
from ltbench.records import Record, RunFolder
from ltbench.runs.checkpoints import check_checkpoint, load_weights, require_same_data
from ltbench.runs.experiment import LINKS, build_part, device_of
from ltbench.runs.notices import quiet
from ltbench.runs.parsing import arguments_of, check_config

ToPredict = str | Path | Image | Tensor | NDArray[np.uint8]

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Classification:
    """Predictions of N images.

    Attributes:
        labels: Most likely class of each image, (N,).
        class_names: Names of these classes, N of them.
        probabilities: Probability of each class, (N, C) float32.
        images: The files, in the same order; empty if the images were not files.
    """

    labels: NDArray[np.int64]
    class_names: list[str]
    probabilities: NDArray[np.float32]
    images: list[Path]


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done.

    Attributes:
        folder: Its folder.
        record: Its record (see :mod:`ltbench.records.schema`).
        config: Its resolved config.
        model: The method in evaluation mode, with its weights.
        checkpoint: The checkpoint of the weights.
        selection: Which weights: ``last`` or ``best``.
        device: Where the model is.
    """

    folder: Path
    record: Record
    config: dict[str, Any]
    model: Method
    checkpoint: dict[str, Any]
    selection: str
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """Name of each class, in label order."""
        return list(self._identity["class_names"])

    @property
    def image_size(self) -> int:
        """Side of the images that the network sees, in pixels."""
        return int(self._identity["image_size"])

    @property
    def channels(self) -> int:
        """Channels of the images: 3, or 1 for grey."""
        return int(self.checkpoint["ltbench_model"][LINKS["channels"]])

    @property
    def input_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of values in [0, 1]."""
        return list(self._identity["mean"]), list(self._identity["std"])

    @property
    def decoding(self) -> Decoding:
        """How image files become squares."""
        return Decoding(**(arguments_of(self.config, "data").get("decoding") or {}))

    def require_images(self) -> None:
        """Refuse a run that does not classify images."""
        known = isinstance(self.model, ClassificationModule) and "image_size" in self._identity
        if not known:
            raise UserError(f"the run {self.folder} does not classify images.")

    @cached_property
    def data(self) -> DataModule:
        """The data that it was trained on, set up; opened at first use.

        Raises:
            UserError: The data is missing, or its classes or training images have changed.
        """
        with quiet():
            data = build_part("data", DataModule, self.config["data"])
            data.setup()
        require_same_data(self.checkpoint, data, same_images=True)
        return data

    def predict(self, images: ToPredict | Sequence[ToPredict]) -> Classification:
        """Classify images, as ``ltbench predict`` does.

        Args:
            images: A file, a folder (all images below it, in path order), a PIL image, or several
                of these; or uint8 images (N, C, H, W), which are not resized if they have the size
                of the training images.

        Raises:
            UserError: The run does not classify images, or an image cannot be used.
        """
        self.require_images()
        items = _listed(images)
        if not len(items):
            raise UserError("no images to classify.")
        kind = _AUTOCAST.get(self.config["trainer"]["precision"])
        context = torch.autocast(self.device.type, kind) if kind else nullcontext()
        size = int(arguments_of(self.config, "data").get("eval_batch_size", 500))
        mean, std = self.input_statistics
        scores = []
        with quiet(), torch.inference_mode(), context:
            for start in range(0, len(items), size):
                batch = self.squares(items[start : start + size]).to(self.device)
                scores.append(self.model.predict_step({"image": standardised(batch, mean, std)}, 0))
        probabilities = torch.cat(scores)
        labels = probabilities.argmax(1)
        return Classification(
            labels.numpy(),
            [self.class_names[c] for c in labels.tolist()],
            probabilities.numpy(),
            [item for item in items if isinstance(item, Path)],
        )

    def squares(self, items: "Sequence[Path | Image] | Tensor") -> Tensor:
        """Return images as the network sees them but for normalisation: (N, C, S, S) uint8.

        Raises:
            UserError: A file cannot be read, or pixels have another shape or type.
        """
        channels, size, how = self.channels, self.image_size, self.decoding
        if isinstance(items, Tensor):
            if items.ndim != 4 or items.shape[1] != channels or items.dtype != torch.uint8:
                raise UserError(
                    f"images must be uint8 of shape (N, {channels}, H, W), not {items.dtype} of "
                    f"shape {tuple(items.shape)}."
                )
            return items if items.shape[2:] == (size, size) else fit(items, size, how)
        squares = [
            decode(item, channels, size, how)
            if isinstance(item, Path)
            else square(item, channels, size, how)
            for item in items
        ]
        return torch.stack(squares)

    @property
    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.checkpoint["ltbench_data"]
        return identity


def open_run(
    folder: str | Path,
    selection: Literal["last", "best"] = "last",
    device: str | None = None,
) -> FinishedRun:
    """Open the folder of a finished run; its training images are not needed.

    Args:
        folder: The run folder.
        selection: Whether to load the weights of the last epoch, or those best on validation.
        device: Where to put the model, such as ``cpu`` or ``cuda:1``; default: the first GPU, else
            the CPU.

    Raises:
        UserError: It is not a run folder, the run is not finished, was written by a newer ltbench,
            or has no such weights.
    """
    run = RunFolder(Path(folder))
    if not run.record.is_file():
        raise UserError(f"{folder} is not a run folder: it has no record.json.")
    record = run.read()
    if record["status"] != "done":
        raise UserError(
            f"the run {folder} is not finished (status: {record['status']}): run its command again "
            "to resume it."
        )
    config = check_config(run.config)
    checkpoint = check_checkpoint(run.checkpoint(selection))
    where = device_of(device)
    made_from, model = checkpoint["ltbench_model"], config["model"]
    linked = {name: made_from[name] for name in LINKS.values()}
    settings = {**model, "init_args": {**model.get("init_args", {}), **linked}}
    with quiet(), isolate_rng():
        built = build_part("model", Method, settings)
        load_weights(built, checkpoint)
    return FinishedRun(run.path, record, config, built.to(where), checkpoint, selection, where)


def _listed(images: "ToPredict | Sequence[ToPredict]") -> "list[Path | Image] | Tensor":
    """Return files and PIL images one by one, or a batch of pixels."""
    if isinstance(images, Tensor):
        return images
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images)
    if isinstance(images, Image):
        return [images]
    if isinstance(images, str | Path):
        path = Path(images)
        return list(image_files(path)) if path.is_dir() else [path]
    parts = [_listed(each) for each in images]
    if any(isinstance(part, Tensor) for part in parts):
        raise UserError("stack several arrays of pixels into one, (N, C, H, W).")
    return [item for part in parts for item in part]

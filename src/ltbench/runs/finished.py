"""A finished run, opened: what it learned, what from, and what it says of new images."""

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
    """What a network says of N images.

    Attributes:
        labels: The most likely class of each, (N,).
        class_names: Its name, N of them.
        probabilities: Of each class, (N, C) float32.
        images: The files, in the same order; empty where there were none.
    """

    labels: NDArray[np.int64]
    class_names: list[str]
    probabilities: NDArray[np.float32]
    images: list[Path]


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done.

    Attributes:
        folder: Where it lies.
        record: Its record (:mod:`ltbench.records.schema` says what is in it).
        config: Its resolved config.
        model: The method in evaluation mode, its weights loaded.
        checkpoint: What was stored with the weights.
        device: Where the model is.
    """

    folder: Path
    record: Record
    config: dict[str, Any]
    model: Method
    checkpoint: dict[str, Any]
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """Name of each class, in label order."""
        return list(self._identity["class_names"])

    @cached_property
    def data(self) -> DataModule:
        """What it was trained on, its splits named; looked for when it is first asked for.

        Raises:
            UserError: It is gone, or has other classes or training images than it had.
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
                of these; or uint8 images (N, C, H, W), which are taken as they are if they have
                the size that the network was trained on.

        Raises:
            UserError: It is a run of another kind, or there is an image that cannot be used.
        """
        model = self.model
        if not isinstance(model, ClassificationModule) or "image_size" not in self._identity:
            raise UserError(f"{self.folder} is not a run that classifies images.")
        items = _listed(images)
        if not len(items):
            raise UserError("there are no images to classify.")
        kind = _AUTOCAST.get(self.config["trainer"]["precision"])
        context = torch.autocast(self.device.type, kind) if kind else nullcontext()
        size = int(self._data_arguments.get("eval_batch_size", 500))
        mean, std = self._identity["mean"], self._identity["std"]
        scores = []
        with quiet(), torch.inference_mode(), context:
            for start in range(0, len(items), size):
                batch = self._squares(items[start : start + size]).to(self.device)
                scores.append(model.predict_step({"image": standardised(batch, mean, std)}, 0))
        probabilities = torch.cat(scores)
        labels = probabilities.argmax(1)
        return Classification(
            labels.numpy(),
            [self.class_names[c] for c in labels.tolist()],
            probabilities.numpy(),
            [item for item in items if isinstance(item, Path)],
        )

    def _squares(self, items: "list[Path | Image] | Tensor") -> Tensor:
        """Return images (B, C, size, size) uint8."""
        channels = self.checkpoint["ltbench_model"][LINKS["channels"]]
        size, how = self._identity["image_size"], self._decoding
        if isinstance(items, Tensor):
            if items.ndim != 4 or items.shape[1] != channels or items.dtype != torch.uint8:
                raise UserError(
                    f"images of shape {tuple(items.shape)} and type {items.dtype} cannot be "
                    f"classified: give uint8 images (N, {channels}, H, W)."
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
    def _data_arguments(self) -> dict[str, Any]:
        return dict(arguments_of(self.config, "data"))

    @property
    def _decoding(self) -> Decoding:
        return Decoding(**(self._data_arguments.get("decoding") or {}))

    @property
    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.checkpoint["ltbench_data"]
        return identity


def open_run(
    folder: str | Path,
    selection: Literal["last", "best"] = "last",
    device: str | None = None,
) -> FinishedRun:
    """Open the folder of a finished run; the images that it was trained on are not needed.

    Args:
        folder: The run folder.
        selection: Its weights of the last epoch, or those that were best on validation.
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
            f"the run {folder} is not finished (status: {record['status']}): give its command "
            "again, and it goes on."
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
    return FinishedRun(run.path, record, config, built.to(where), checkpoint, where)


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
        raise UserError("arrays of pixels are classified as one array, (N, C, H, W).")
    return [item for part in parts for item in part]

"""Checkpoints: written atomically, usable after their folder was moved, checked before use."""

import io
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from ltbench import records
from ltbench.data.base import DataModule
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.methods.parts import stages
from ltbench.models import weights
from ltbench.runs.context import RunContext
from ltbench.runs.experiment import Experiment


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint callback that goes on after its run folder was moved.

    Every epoch saves it anew, also one without a step: a method may set its weights instead.
    """

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_global_step_saved = -1  # else Lightning saves nothing before the next step

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:  # whatever the file says: an old one is removed
            return str(Path(self.dirpath or "", f"{self.filename}.ckpt")) if path else ""

        if not Path(here(state_dict["best_model_path"])).is_file():  # it is another run's
            return
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            state_dict
            | {name: here(state_dict[name]) for name in paths}
            | {
                "dirpath": self.dirpath,
                "best_k_models": {here(p): s for p, s in state_dict["best_k_models"].items()},
            }
        )


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically; Lightning would copy them from /tmp over the old ones.

    Each holds what its model was made from and what data it saw, to be compared before use.
    """

    def __init__(self, context: RunContext, data: DataModule) -> None:
        self.context, self.data = context, data

    @override
    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        origin = {"ltbench_model": self.context.made_from, "ltbench_data": self.data.identity()}
        buffer = io.BytesIO()
        torch.save({**checkpoint, **origin}, buffer)
        records.write_whole(Path(path), lambda file: file.write(buffer.getbuffer()))

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; a path may come from another one, so it is a file of that kind."""
        file = Path(path)
        if file.suffix == ".ckpt" and ".." not in file.parts and not file.is_dir():
            file.unlink(missing_ok=True)


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ltbench, without executing anything in it.

    Raises:
        UserError: The file is missing, damaged, unsafe, or was not written by ltbench.
    """
    checkpoint = weights.read(path)
    if "ltbench_model" not in checkpoint:
        raise UserError(
            f"{path} is not an ltbench checkpoint: those of a run lie in its checkpoints/."
        )
    for name, kind in _PARTS.items():
        if not isinstance(checkpoint.get(name), kind):
            raise UserError(f"{path} is not a complete ltbench checkpoint: '{name}' is missing.")
    classes = checkpoint["ltbench_data"].get("class_names", [])
    names = [*checkpoint["state_dict"], *(classes if isinstance(classes, list) else [classes])]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged: its weights or classes have names that are not text.")
    return checkpoint


def require_evaluable(path: Path, experiment: Experiment, same_images: bool) -> None:
    """Refuse a checkpoint of another experiment, and warn of a run that is not finished.

    Args:
        path: The checkpoint.
        experiment: The experiment, its data set up.
        same_images: Whether it must have been trained on the training images of this data.

    Raises:
        UserError: It is not a checkpoint of ltbench, or is of another model or other data.
    """
    checkpoint = check_checkpoint(path)
    require_same_model(checkpoint, experiment.evaluation, experiment.model)
    require_same_data(checkpoint, experiment.data, same_images)
    folder = path.absolute().parent
    status = stages.status(folder.parent) if folder.name == "checkpoints" else None
    if status not in (None, "done"):
        warnings.warn(f"the run of {path} is not finished (status: {status}).", stacklevel=2)


def require_resumable(path: Path, experiment: Experiment) -> int:
    """Refuse a checkpoint from which training cannot be resumed to the same result.

    Args:
        path: The checkpoint.
        experiment: The experiment, its data set up.

    Returns:
        Number of epochs that it has been trained for.

    Raises:
        UserError: It is not a checkpoint of ltbench, lacks the state of the training, was saved in
            the middle of an epoch, or is of another model or other data.
    """
    checkpoint = check_checkpoint(path)
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        begun, done = int(progress["ready"]), int(progress["processed"])
        complete = (
            checkpoint["optimizer_states"] and "history" in checkpoint["callbacks"]["RunRecord"]
        )
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(
            f"cannot resume from {path}: it does not hold the whole state of the training. "
            "--fresh true starts over."
        )
    if done < begun:
        raise UserError(
            f"{path} was saved in the middle of an epoch. Resume from last.ckpt: the same command "
            "without --ckpt_path does so."
        )
    require_same_model(checkpoint, experiment.training, experiment.model)
    require_same_data(checkpoint, experiment.data, same_images=True)
    return done


def require_same_model(checkpoint: dict[str, Any], context: RunContext, model: Method) -> None:
    """Refuse a checkpoint of another method, or of a model that was made from other arguments.

    Raises:
        UserError: Arguments differ; each is named.
    """
    stored, configured = records.canonical(checkpoint["ltbench_model"]), context.made_from
    # Only training needs the networks that it starts from, so only then are they known.
    free = (model.starts.keys() - context.starts.keys()) | model.evaluation_arguments
    differing = [
        f"{key}: checkpoint {stored.get(key)!r}, config {configured.get(key)!r}"
        for key in sorted((stored.keys() | configured.keys()) - free)
        if stored.get(key) != configured.get(key)
    ]
    if differing:
        raise UserError(
            f"the checkpoint was trained with another model ({'; '.join(differing)}). Use the "
            "config.yaml in its run folder."
        )


def require_same_data(checkpoint: dict[str, Any], data: DataModule, same_images: bool) -> None:
    """Refuse a checkpoint of other classes or, if ``same_images``, of other training images.

    Images are normalised as in its training from then on: what it started from may be gone.

    Raises:
        UserError: Classes or training images differ.
    """
    stored, present = checkpoint["ltbench_data"], data.identity()
    if stored.get("class_names", present["class_names"]) != present["class_names"]:
        raise UserError(
            "the checkpoint was trained on other classes "
            f"({', '.join(stored['class_names'][:3])}, ...) than this data has."
        )
    images = {"training_set", "fingerprint"} & stored.keys()
    if same_images and any(stored[key] != present[key] for key in images):
        raise UserError(
            "the checkpoint was trained on other images, which may be in this validation set: use "
            "the data settings of the config.yaml in its run folder."
        )
    if {"mean", "std"} <= stored.keys():
        data.normalise_for(stored["mean"], stored["std"])


def load_weights(model: Method, checkpoint: dict[str, Any]) -> None:
    """Load the weights of a checkpoint into a model, and set it to evaluation mode.

    Raises:
        UserError: They are those of another network.
    """
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()


_PARTS = {
    **dict.fromkeys(("ltbench_model", "ltbench_data", "state_dict", "loops", "callbacks"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    "pytorch-lightning_version": str,
}

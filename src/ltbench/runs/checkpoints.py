"""Checkpoints: written whole, known after their run folder was moved, checked before use."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ltbench import records
from ltbench.errors import UserError
from ltbench.methods import stages


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint that is still known after its run folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as if the files had always been here; those of another run are none of this one."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else ""

        if not Path(here(state_dict["best_model_path"])).is_file():
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
    """Checkpoints are never half written; Lightning would copy them from /tmp over the old ones."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401 - Lightning's signature
    ) -> None:
        """Write a checkpoint as every other file of a run."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        records.write_whole(Path(path), lambda file: file.write(buffer.getbuffer()))


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, without executing anything in it.

    Raises:
        UserError: The file is missing, damaged, unsafe, or was not written by ltbench.
    """
    found = stages.read(path)
    if "ltbench_model" not in found:
        raise UserError(f"{path} is no ltbench checkpoint: a run keeps its own in checkpoints/.")
    for name, kind in _PARTS.items():
        if not isinstance(found.get(name), kind):
            raise UserError(f"{path} is no whole ltbench checkpoint: it has no '{name}'.")
    classes = found["ltbench_data"].get("class_names", [])
    names = [*found["state_dict"], *(classes if isinstance(classes, list) else [classes])]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is no whole ltbench checkpoint: weights or classes lack a name.")
    return found


def require_evaluable(path: Path) -> None:
    """Refuse a file that is no checkpoint of ours, and warn of a run that is not finished.

    Raises:
        UserError: It is no checkpoint of ours.
    """
    check_checkpoint(path)
    folder = path.absolute().parent
    status = stages.status(folder.parent) if folder.name == "checkpoints" else None
    if status not in (None, "done"):
        warnings.warn(f"{path} is of a run that is not finished (status: {status}).", stacklevel=2)


def require_resumable(path: Path) -> None:
    """Refuse a checkpoint that a training cannot go on from to the same result.

    Raises:
        UserError: It is no checkpoint of ours, lacks what a training keeps, or was saved in the
            middle of an epoch.
    """
    found = check_checkpoint(path)
    try:
        progress = found["loops"]["fit_loop"]["epoch_progress"]["current"]
        begun, done = int(progress["ready"]), int(progress["processed"])
        whole = found["optimizer_states"] and "history" in found["callbacks"]["RunRecord"]
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(
            f"{path} lacks a part of what a training keeps, so that none can go on from it: "
            "--fresh true starts over."
        )
    if done < begun:
        raise UserError(
            f"{path} was saved in the middle of an epoch: go on from last.ckpt, which the same "
            "command does without --ckpt_path."
        )


_PARTS = {
    **dict.fromkeys(("ltbench_model", "ltbench_data", "state_dict", "loops", "callbacks"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    "pytorch-lightning_version": str,
}

"""Checkpoints that are written whole, and still known after their run folder was moved."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ltbench import records


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

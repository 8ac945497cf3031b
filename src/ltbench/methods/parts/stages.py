"""Stages are ordinary runs: a teacher, a start for fine-tuning, a classifier in the loop.

A later run names the earlier one in its config (``teacher: {path: runs/...}``). What it takes is
the network alone, built from plain data in the checkpoint, so nothing of the file is executed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ltbench import records, untrusted
from ltbench.errors import UserError
from ltbench.models import InputStatistics, build_backbone, trained_on, weights


@dataclass
class Trained:
    """Names a trained network in a config.

    Args:
        path: A run folder, one of its checkpoints, or a file with a plain ``state_dict``, such as
            the teachers that PaCo's and LDAM's authors released; null takes timm's own pretrained
            weights of ``backbone``. Where no name in it is one of the backbone's, its tensors have
            to be the backbone's in the same order.
        selection: Which weights of a run folder: of the last epoch, or best on validation.
        backbone: timm name; needed for a plain state dict and for timm's weights.
        backbone_args: Further arguments of ``timm.create_model``, for the same case.
        head: Kind of classifier, for the same case.
    """

    path: str | None = None
    selection: Literal["last", "best"] = "last"
    backbone: str | None = None
    backbone_args: dict[str, Any] | None = None
    head: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        self.path = None if self.path == "None" else self.path


@dataclass(frozen=True)
class Start:
    """A trained network, and what its run knew.

    Attributes:
        network: Maps normalised images (B, in_chans, H, W) to logits (B, C); in evaluation mode,
            without gradients.
        spec: Arguments of :func:`~ltbench.models.build_backbone` that rebuild it.
        data: What its checkpoint says of its data (``class_names``, ``mean``, ``std``,
            ``image_size``, ``training_set``); without names and set for timm's weights, and no more
            than mean and std for a plain state dict.
        lineage: Where it came from, for the record.
    """

    network: nn.Module
    spec: dict[str, Any]
    data: dict[str, Any]
    lineage: dict[str, Any]

    def require_same_data(self, data: dict[str, Any], other: bool = False) -> None:
        """Refuse to go on with other data, as far as the checkpoint knows its own.

        Args:
            data: The :meth:`~ltbench.data.base.DataModule.identity` of this run's.
            other: Whether classes and images may be others, as for a new head; then those of one
                data set still have to be the same ones.

        Raises:
            UserError: Classes, normalisation or size of the images, or training images differ.
        """
        role = self.lineage["role"]
        wrong = [key for key, value in self.data.items() if data.get(key, value) != value]
        if other:
            sources = [str(d.get("training_set")).partition(":")[0] for d in (self.data, data)]
            free = {"class_names", "image_size"} | (_IMAGES if len({*sources}) == 2 else set())
            wrong = [key for key in wrong if key not in free]
        if wrong and _IMAGES.issuperset(wrong):
            raise UserError(
                f"{role} was trained on other images, which may be in this validation set: use the "
                "data settings of the config.yaml in its run folder."
            )
        if wrong:
            key = wrong[0]
            raise UserError(
                f"{role} was trained on data with another {key}: {self.data[key]}, not {data[key]}."
            )


_IMAGES = {"training_set", "fingerprint"}  # of a checkpoint's data: which images, and their content


def checkpoint_of(trained: Trained) -> Path | None:
    """Return the file that holds the weights, or None for timm's own.

    Raises:
        UserError: There is no such file, or the run that it belongs to has not finished.
    """
    if trained.path is None:
        if trained.backbone is None:
            raise UserError("a trained network needs a path, or the backbone of timm's weights.")
        return None
    path = Path(trained.path)
    if path.is_dir():
        if (state := status(path)) != "done":
            raise UserError(f"the run {path} is not finished (status: {state}): finish it first.")
        path = path / "checkpoints" / f"{trained.selection}.ckpt"
    if not path.is_file():
        raise UserError(
            f"there is no trained network {path}: train it first, then name its run folder, a "
            "checkpoint, or a file with a state dict."
        )
    return path


def status(folder: Path) -> str | None:
    """Return how far the run in a folder is (``done``, ``interrupted``, ...); None without one."""
    return _record(folder).get("status")


def identity(trained: Trained) -> dict[str, Any]:
    """Return what names a trained network wherever it lies: a job id and selection, or a hash.

    Raises:
        UserError: There is no such network.
    """
    file = checkpoint_of(trained)
    if file is None:
        return {"backbone": trained.backbone, "backbone_args": trained.backbone_args}
    record = _record(file.parents[1]) if file.parent.name == "checkpoints" else {}
    if "job_id" in record:
        revised = records.recorded_revisions(record)
        return {
            "job_id": record["job_id"],
            "selection": file.stem,
            **({"revisions": revised} if revised else {}),
        }
    return {"sha256": sha256(file), "backbone": trained.backbone, "head": trained.head}


def load(
    trained: Trained,
    num_classes: int,
    in_chans: int = 3,
    *,
    role: str,
    any_classes: bool = False,
) -> Start:
    """Build a trained network.

    Args:
        trained: Which one.
        num_classes: Classes that it must have.
        in_chans: Image channels that it must take.
        role: What it is for: ``teacher``, ``init_from``, ...; for messages and the lineage.
        any_classes: Whether it may know other classes, since its features alone are asked for.

    Raises:
        UserError: The file is missing, unsafe or not a network, or its classes or channels differ.
    """
    file = checkpoint_of(trained)
    state: dict[str, Tensor] | None = None
    data: Any = {}
    if file is None:
        spec = _named(trained, num_classes, in_chans, pretrained=True)
        data = trained_on(spec["name"])
        known = data.pop("num_classes", num_classes)
        if any_classes:
            spec["num_classes"] = known
        elif known != num_classes:
            raise UserError(
                f"{role}: timm's weights of '{spec['name']}' are for {known} classes, this data "
                f"has {num_classes}: timm would put an untrained classifier in place of theirs."
            )
    else:
        content = weights.read(file)
        if "ltbench_network" in content and not content["ltbench_network"]:
            raise UserError(f"{role} {file} has no classifier: name another run.")
        state = content.get("state_dict", content)
        if not (isinstance(state, dict) and all(isinstance(name, str) for name in state)):
            raise UserError(f"{role} {file} is not a state dict: names -> tensors.")
        if "ltbench_network" in content:
            spec, data = content["ltbench_network"], content.get("ltbench_data", {})
            if not (_is_network(spec) and isinstance(data, dict)):
                raise UserError(f"{role} {file} does not say which network and data it is of.")
            state = weights.below("net.", state)
        else:
            spec = _named(trained, num_classes, in_chans)
            state, data = weights.below("module.", state), _usual_data(spec["name"], state)
            if any_classes:
                known = weights.classes_of(state, build_backbone(**spec), f"{role} {file}")
                spec["num_classes"] = known or num_classes
    classes, channels = spec["num_classes"], spec["in_chans"]
    if (num_classes if any_classes else classes, channels) != (num_classes, in_chans):
        raise UserError(
            f"{role} {file} has {classes} classes and {channels} image channels; "
            f"this data has {num_classes} and {in_chans}."
        )
    if state is not None:
        spec = {**spec, "pretrained": False}
    network = build_backbone(**spec)
    if state is not None:
        weights.fill(network, state, f"{role} {file}")
    lineage = {"role": role, **identity(trained), "path": str(file) if file else None}
    return Start(network.eval().requires_grad_(False), spec, data, lineage)


def input_statistics(trained: Trained) -> InputStatistics | None:
    """Return how images were brought to a trained network.

    None where it does not say, or is not there: training from it is refused, evaluation goes by the
    checkpoint that is evaluated.
    """
    try:
        file = checkpoint_of(trained)
    except UserError:
        return None
    if file is None:
        return InputStatistics.of(trained_on(trained.backbone or ""))
    content = weights.read(file)
    if "ltbench_network" not in content:
        return InputStatistics.of(_usual_data(trained.backbone, content.get("state_dict", content)))
    data = content.get("ltbench_data")
    return InputStatistics.of(data) if isinstance(data, dict) else None


def _usual_data(backbone: str | None, state: Any) -> dict[str, Any]:  # noqa: ANN401 - of a file
    """Return what timm's weights of a network were trained on, for weights of as many classes."""
    if not isinstance(state, dict):
        return {}
    data = trained_on(backbone or "")
    classes = data.get("num_classes")
    rows = {v.shape[:1] for v in state.values() if isinstance(v, Tensor)}
    return {key: data[key] for key in ("mean", "std")} if (classes,) in rows else {}


def _named(trained: Trained, num_classes: int, in_chans: int, **more: bool) -> dict[str, Any]:
    if trained.backbone is None:
        raise UserError(
            f"{trained.path} is a plain state dict: name its timm backbone (backbone: "
            "resnet32_cifar)."
        )
    return {
        "name": trained.backbone,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "head": trained.head,
        **(trained.backbone_args or {}),
        **more,
    }


def _is_network(spec: Any) -> bool:  # noqa: ANN401 - whatever a checkpoint holds
    kinds = {"name": str, "num_classes": int, "in_chans": int}
    return (
        isinstance(spec, dict)
        and all(isinstance(key, str) for key in spec)
        and all(isinstance(spec.get(key), kind) for key, kind in kinds.items())
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "record.json"
    return records.read_record(path) if path.is_file() else {}


def sha256(path: Path) -> str:
    """Return the hash of what a file holds."""
    with untrusted.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

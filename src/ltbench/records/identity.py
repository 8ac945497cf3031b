"""What makes two runs the same experiment.

A run is identified by its job id, a hash of its resolved config. Runs that differ only in their
seeds, and in those of the stages that they start from, share a recipe.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OUR_CLASS = re.compile(r"ltbench(\.\w+)+\.[A-Z]\w*")

_INCIDENTAL = {  # what a user may change without making it another experiment
    "data": {"root", "num_workers", "predict_folder", "eval_batch_size"},
    "trainer": {
        "logger",
        "default_root_dir",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
        "log_every_n_steps",
        "profiler",
    },
}


def job_id(
    config: Mapping[str, Any], data_fingerprint: str, starts: Mapping[str, Any] | None = None
) -> str:
    """Return the 16 hex digits that identify an experiment: a hash of its resolved config.

    Where the data lies, how it is decoded and how progress is shown do not count.

    Args:
        config: The resolved config: ``seed_everything``, ``model``, ``data``, ``trainer``.
        data_fingerprint: What tells the data of one root from that of another.
        starts: What identifies the trained networks that the run starts from, by the argument of
            the model that they replace, wherever they lie.
    """
    parts = _essential(config)
    if starts:
        model = parts["model"]
        parts["model"] = {**model, "init_args": {**model["init_args"], **starts}}
    named = {"seed_everything": config["seed_everything"], "fingerprint": data_fingerprint}
    return digest(parts | named)


def recipe(record: Mapping[str, Any]) -> str:
    """Return the 16 hex digits that the records of one config share, whatever their seeds."""
    text = json.dumps(_essential(canonical(record["config"])), sort_keys=True, default=str)
    for start in record.get("lineage") or ():
        file = Path(start.get("path") or "no path")
        for place in (file, file.parent.parent):  # a run may be named by its folder
            text = text.replace(json.dumps(str(place)), '"an earlier stage"')
    return digest(text)


def canonical(value: Any) -> Any:  # noqa: ANN401 - a config is recursive
    """Name each class of ltbench in a config without its module, which may change between versions.

    >>> canonical({"augment": ["ltbench.data.augment.RandomCrop"]})
    {'augment': ['RandomCrop']}
    """
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, str) and _OUR_CLASS.fullmatch(value):
        return value.rpartition(".")[2]
    return value


def digest(content: object) -> str:
    """Return 16 hex digits for a value, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return model, data and trainer of a config without what does not count."""
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    arguments = data.get("init_args") or {}
    return {
        "model": config.get("model") or {},
        "data": {**data, "init_args": _without(arguments, _INCIDENTAL["data"])},
        "trainer": _without(trainer, _INCIDENTAL["trainer"]),
    }


def _without(mapping: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}

"""What makes two runs the same experiment.

A run is identified by its job id, a hash of its resolved config. Runs that differ only in their
seeds, and in those of the stages that they start from, share a recipe.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
_LINKED = {"num_classes", "in_chans"}  # arguments of the model that follow from the data
_REMOVED = {  # options that old configs have, at the value that means what there is without them
    "on_bad_loss": "error",
    "early_stop": False,
    "official_compat": False,
    "multiplier_rule": None,
    "teacher_normalisation": None,
}


class _Revision(NamedTuple):
    number: int
    concerns: Callable[[Mapping[str, Any]], bool] = lambda options: True


# Classes of ltbench whose recipe was mended without a change of their options, which options are
# concerned, and what changed: runs of before and after are different experiments.
_REVISED = {
    # Grey outside the image, bicubic shears, whole pixels of translation rounded, not truncated.
    "AutoAugment": _Revision(2),
    # Two power iterations per step of the discriminator; the classifier in the loop takes images in
    # [-1, 1] as they are.
    "CBGAN": _Revision(2),
    # With a warm-up, the cosine begins in its last epoch, not after it.
    "Cosine": _Revision(2, lambda options: bool(options.get("warmup"))),
    # The projections have batch norm, the class centres start as torch's Linear does.
    "PaCo": _Revision(2),
    # Cutout's square as released, bits truncated, whole pixels of translation rounded.
    "RandAugment": _Revision(2, lambda options: options.get("space") == "fixmatch"),
}
_ADDED = {  # options that old configs lack, at the value that means what there was without them
    "compile": False,
    "decay_norms": True,
    "drop_last": False,
    "head": "linear",
    "head_init": "own",
    "include_labelled": False,
    "magnitude_std": 0.0,
    "sampler": "shuffled",
    "trainable": "all",
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
    return digest(parts | named | with_revisions(config))


def revisions(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the revision of each class that a config names and whose recipe was mended.

    >>> revisions({"model": {"class_path": "PaCo"}, "data": {"class_path": "LongTailDataModule"}})
    {'PaCo': 2}
    """
    parts = canonical({part: config.get(part) for part in ("model", "data", "trainer")})
    named = sorted(set(_named(parts)))
    return {name: _REVISED[name].number for name in named}


def with_revisions(config: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return what a hash of a config includes beside it: nothing for most."""
    revised = revisions(config)
    return {"revisions": revised} if revised else {}


def recorded_revisions(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the revisions that a run was trained with, and the runs that it started from."""
    earlier = [start.get("revisions") or {} for start in record.get("lineage") or ()]
    union: dict[str, int] = {}
    for each in (*earlier, record.get("revisions") or {}):
        union |= each
    return union


def recipe(record: Mapping[str, Any]) -> str:
    """Return the 16 hex digits that the records of one config share, whatever their seeds."""
    text = json.dumps(_essential(canonical(record["config"])), sort_keys=True, default=str)
    for start in record.get("lineage") or ():
        file = Path(start.get("path") or "no path")
        for place in (file, file.parent.parent):  # a run may be named by its folder
            text = text.replace(json.dumps(str(place)), '"an earlier stage"')
    revised = recorded_revisions(record)
    return digest([text, revised] if revised else text)


def canonical(value: Any) -> Any:  # noqa: ANN401 - a config is recursive
    """Spell a config, or a part of one, as this version does.

    A class of ltbench goes by its name without the module, and an option that it no longer has is
    left out where that changes nothing.

    >>> canonical({"augment": ["ltbench.data.augment.RandomCrop"]})
    {'augment': ['RandomCrop']}
    """
    if isinstance(value, dict):
        spelled = {key: canonical(item) for key, item in value.items()}
        if "." in str(spelled.get("class_path", ".")):  # not a class of ltbench
            return spelled
        if isinstance(spelled.get("init_args"), dict):
            spelled["init_args"] = _unlike(_REMOVED, spelled["init_args"])
        return _unlike(_REMOVED, spelled)
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, str) and _OUR_CLASS.fullmatch(value):
        return value.rpartition(".")[2]
    return value


def digest(content: object) -> str:
    """Return 16 hex digits for a value, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(value: Any) -> Iterator[str]:  # noqa: ANN401 - a config is recursive
    """Yield the classes of a canonical config that were revised."""
    if isinstance(value, str):
        value = {"class_path": value}  # a class without options
    if isinstance(value, dict):
        name, options = value.get("class_path"), value | (value.get("init_args") or {})
        if isinstance(name, str) and name in _REVISED and _REVISED[name].concerns(options):
            yield name
        value = [item for key, item in value.items() if key != "class_path"]
    if isinstance(value, list):
        for item in value:
            yield from _named(item)


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return model, data and trainer of a config without what does not count.

    Options that are null, or have the value that stands for "as before", do not: a config has the
    same identity before and after such an option is added.
    """
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    arguments = _without(data.get("init_args") or {}, _INCIDENTAL["data"])
    model = config.get("model") or {}
    linked = _without(model.get("init_args") or {}, _LINKED)
    return {
        "model": _set({**model, "init_args": linked}),
        "data": _set({**data, "init_args": arguments}),
        "trainer": _set(_without(trainer, _INCIDENTAL["trainer"])),
    }


def _set(value: Any, ours: bool = True) -> Any:  # noqa: ANN401 - a config is recursive
    """Return settings without those that say nothing, at any depth.

    Args:
        value: Settings.
        ours: Whether they are of a class of ltbench: the options of others are not known here.
    """
    if isinstance(value, dict):
        ours = "." not in str(value.get("class_path", "" if ours else "."))
        options = {key: _set(item, ours) for key, item in value.items() if item is not None}
        return _unlike(_ADDED, options) if ours else options
    return [_set(item, ours) for item in value] if isinstance(value, list) else value


def _without(mapping: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _unlike(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options but for those that have one of these values."""
    return {k: v for k, v in options.items() if k not in values or v != values[k]}

"""Whether rows measure the same thing: what they were trained with, and where one is different."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ltbench.bench.score.results import Row, Run
from ltbench.records import Record
from ltbench.records.schema import SELECTIONS

Facts = dict[str, str]
"""What -> how, in words short enough for a table."""


def facts(row: Row) -> Facts:
    """Return everything about the runs of a row that a fair comparison holds fixed.

    Args:
        row: Finished runs that differ in their seeds alone.
    """
    run = row.runs[0]
    record = run.record
    model, data = _arguments(record, "model"), _arguments(record, "data")
    counts = record["data"]["class_counts"]
    unlabelled = record["data"].get("unlabelled_counts")
    return {
        "training images": f"{sum(counts):,} ({record['data']['index_hash'][:8]})",
        "unlabelled images": f"{_total(unlabelled):,}" if unlabelled else "none",
        "backbone": _call(*backbone(record, row.earlier)),
        "pre-training": _pretraining(record, model, row.earlier),
        "images seen": _rounded(record["images_seen"]),
        "input size": str(data.get("image_size") or "native"),
        "augmentation": _augmentation(model, data),
        "selected": SELECTIONS[run.selection],
        "weights": str(record.get("weights", "raw")),
    }


def shared(of_rows: Sequence[Facts]) -> Facts:
    """Return, of each fact, the value that most rows have."""
    return {
        name: Counter(found[name] for found in of_rows).most_common(1)[0][0] for name in of_rows[0]
    }


def differences(found: Facts, usual: Facts) -> list[str]:
    """Return in words where a row differs from what most rows have."""
    return [f"{name}: {value}" for name, value in found.items() if value != usual[name]]


def backbone(record: Record, earlier: Sequence[Run]) -> tuple[str, dict[str, Any]]:
    """Return the network of a run and its arguments: its config's, else that which it began with.

    Args:
        record: Of the run.
        earlier: What it may have begun with.
    """
    model = _arguments(record, "model")
    if model.get("backbone"):
        arguments = dict(model.get("backbone_args") or {})
        arguments.pop("pretrained", None)
        return str(model["backbone"]), arguments
    for start in record.get("lineage") or ():
        if start.get("role") == "init_from":
            if start.get("backbone"):
                return str(start["backbone"]), dict(start.get("backbone_args") or {})
            for run in earlier:
                if run.record.get("job_id") == start.get("job_id"):
                    return backbone(run.record, [other for other in earlier if other is not run])
    return "own", {}


def _arguments(record: Record, part: str) -> Mapping[str, Any]:
    return (record["config"].get(part) or {}).get("init_args") or {}


def _total(counts: Any) -> int:  # noqa: ANN401 - a list, or a list a part
    return sum(map(_total, counts)) if isinstance(counts, list) else int(counts or 0)


def _pretraining(record: Record, model: Mapping[str, Any], earlier: Sequence[Run]) -> str:
    names = {run.record.get("job_id"): run.record["name"] for run in earlier}
    found = ["timm's weights"] if (model.get("backbone_args") or {}).get("pretrained") else []
    for start in record.get("lineage") or ():
        other = "a run that is not here" if start.get("job_id") else start.get("backbone")
        source = names.get(start.get("job_id"), other or "a file")
        found.append(f"{start.get('role', 'start')} is {source}")
    return "; ".join(found) or "none"


def _augmentation(model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    names = ("augment", "strong_augment", "views")
    found = [_transforms(data[name]) for name in names if data.get(name)]
    found += [f"{name} {model[name]:g}" for name in ("mixup", "cutmix") if model.get(name)]
    return "; ".join(found) or "none"


def _transforms(given: Any) -> str:  # noqa: ANN401 - a transform, a list or a dict of them
    if isinstance(given, Mapping) and "class_path" in given:
        return _call(given["class_path"].rpartition(".")[2], given.get("init_args"))
    if isinstance(given, Mapping):
        return "; ".join(f"{name}: {_transforms(item)}" for name, item in given.items())
    return ", ".join(map(_transforms, given)) if isinstance(given, list) else str(given)


def _call(name: str, arguments: Mapping[str, Any] | None) -> str:
    told = ", ".join(f"{k}={json.dumps(v)}" for k, v in (arguments or {}).items() if v is not None)
    return f"{name}({told})" if told else name


def _rounded(images: int) -> str:
    """Write a number of images with three digits: 2.48M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if images >= size:
            return f"{images / size:.3g}{unit}"
    return str(images)

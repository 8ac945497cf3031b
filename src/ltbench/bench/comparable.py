"""Whether rows measure the same thing: what they were trained with, and where one is different."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ltbench.bench.results import Record, Run

Facts = dict[str, str]
"""What -> how, in words short enough for a table."""


def facts(run: Run) -> Facts:
    """Return everything about a run that a fair comparison holds fixed.

    Args:
        run: Any finished run.
    """
    record = run.record
    model = record["config"].get("model", {}).get("init_args", {})
    data = record["config"].get("data", {}).get("init_args", {})
    counts = record["data"]["class_counts"]
    unlabelled = record["data"].get("unlabelled_counts")
    return {
        "training images": f"{sum(counts):,} ({record['data']['index_hash'][:8]})",
        "unlabelled images": f"{_total(unlabelled):,}" if unlabelled else "none",
        "backbone": _call(model.get("backbone"), _without_pretrained(model.get("backbone_args"))),
        "pre-training": _pretraining(record, model),
        "images seen": _rounded(record["images_seen"]),
        "input size": str(data.get("image_size") or "native"),
        "augmentation": _augmentation(model, data),
        "selected": {"best": "best on val", "last": "last epoch"}.get(run.selection, run.selection),
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


def _total(counts: Any) -> int:  # noqa: ANN401 - a list, or a list a part
    return sum(map(_total, counts)) if isinstance(counts, list) else int(counts or 0)


def _without_pretrained(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (arguments or {}).items() if key != "pretrained"}


def _pretraining(record: Record, model: Mapping[str, Any]) -> str:
    found = ["timm's weights"] if (model.get("backbone_args") or {}).get("pretrained") else []
    for start in record.get("lineage", []):
        source = "a run of this suite" if start.get("job_id") else start.get("backbone") or "a file"
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
    return ", ".join(map(_transforms, given))


def _call(name: Any, arguments: Mapping[str, Any] | None) -> str:  # noqa: ANN401
    told = ", ".join(f"{k}={json.dumps(v)}" for k, v in (arguments or {}).items() if v is not None)
    return f"{name or 'own'}({told})" if told else str(name or "own")


def _rounded(images: int) -> str:
    """Write a number of images with three digits: 2.48M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if images >= size:
            return f"{images / size:.3g}{unit}"
    return str(images)

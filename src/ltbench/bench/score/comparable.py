"""Whether rows are comparable: what they were trained with, and where one differs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ltbench.bench.score.results import Row, Run
from ltbench.records import Record
from ltbench.records.schema import SELECTIONS

Facts = dict[str, str]
"""Property -> value, in words short enough for a table."""


def facts(row: Row) -> Facts:
    """Return everything that a fair comparison holds fixed."""
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
    """Return the most frequent value of each fact."""
    return {name: Counter(row[name] for row in of_rows).most_common(1)[0][0] for name in of_rows[0]}


def differences(own: Facts, usual: Facts) -> list[str]:
    """Describe where the facts of a row differ from the most frequent ones."""
    return [f"{name}: {value}" for name, value in own.items() if value != usual[name]]


def backbone(record: Record, earlier: Sequence[Run]) -> tuple[str, dict[str, Any]]:
    """Return the network of a run and its arguments: from its config, or that of an earlier run."""
    model = _arguments(record, "model")
    if model.get("backbone"):
        return str(model["backbone"]), _without_weights(model.get("backbone_args"))
    for start in record.get("lineage") or ():
        if start.get("role") == "init_from":
            if start.get("backbone"):
                return str(start["backbone"]), _without_weights(start.get("backbone_args"))
            for run in earlier:
                if run.record.get("job_id") == start.get("job_id"):
                    return backbone(run.record, [other for other in earlier if other is not run])
    return "own", {}


def _without_weights(arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - of a record
    return {k: v for k, v in _mapping(arguments).items() if k != "pretrained"}


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - of a record
    """Return a part of a config, or nothing where it is something else."""
    return value if isinstance(value, Mapping) else {}


def _arguments(record: Record, part: str) -> Mapping[str, Any]:
    return (record["config"].get(part) or {}).get("init_args") or {}


def _total(counts: Any) -> int:  # noqa: ANN401 - a list, or a list a part
    return sum(map(_total, counts)) if isinstance(counts, list) else counts


def _pretraining(record: Record, model: Mapping[str, Any], earlier: Sequence[Run]) -> str:
    names = {run.record.get("job_id"): run.record["name"] for run in earlier}
    pretrained = _mapping(model.get("backbone_args")).get("pretrained")
    starts = ["timm's weights"] if pretrained else []
    for start in record.get("lineage") or ():
        other = "a run that is not here" if start.get("job_id") else start.get("backbone")
        source = names.get(start.get("job_id"), other or "a file")
        starts.append(f"{start.get('role', 'start')} is {source}")
    return "; ".join(starts) or "none"


def _augmentation(model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    names = ("augment", "strong_augment", "views")
    parts = [_transforms(data[name]) for name in names if data.get(name)]
    parts += [f"{name} {model[name]}" for name in ("mixup", "cutmix") if model.get(name)]
    return "; ".join(parts) or "none"


def _transforms(setting: Any) -> str:  # noqa: ANN401 - a transform, a list or a dict of them
    if isinstance(setting, Mapping) and "class_path" in setting:
        return _call(str(setting["class_path"]).rpartition(".")[2], setting.get("init_args"))
    if isinstance(setting, Mapping):
        return "; ".join(f"{name}: {_transforms(item)}" for name, item in setting.items())
    return ", ".join(map(_transforms, setting)) if isinstance(setting, list) else str(setting)


def _call(name: str, arguments: Any) -> str:  # noqa: ANN401 - of a record
    listed = ", ".join(
        f"{k}={json.dumps(v)}" for k, v in _mapping(arguments).items() if v is not None
    )
    return f"{name}({listed})" if listed else name


def _rounded(images: int) -> str:  # 2.48M
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if images >= size:
            return f"{images / size:.3g}{unit}"
    return str(images)

"""Class-wise spectra: is the loss of a tail class at a minimum, or at a saddle?

For each class the Hessian of the mean loss over its images alone, by all trained parameters, in
evaluation mode and under test transforms: Rangwani et al. 2022, arXiv 2212.13827, section 3.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from ltbench import seeding
from ltbench.analysis import spectra
from ltbench.analysis.curvature import class_loss
from ltbench.analysis.lanczos import Krylov, lanczos, rademacher
from ltbench.analysis.result import Others, Result, shared
from ltbench.analysis.subject import Rows, Subject
from ltbench.errors import UserError

BASIS_BYTES = 2**30  # of Lanczos vectors held at once; one run is always possible
SHOWN = 3  # classes of each end and of the middle, where there are more than ten


def analyse(
    subject: Subject,
    split: str = "train",
    classes: Sequence[str] = (),
    loss: Literal["ce", "run"] = "ce",
    steps: int = 100,
    runs: int = 5,
    images: int = 200,
    batch_size: int = 64,
    beside: Others = MappingProxyType({}),
    fresh: bool = False,
) -> Result:
    """Measure the spectrum of each class, going on from the results of an earlier call.

    Args:
        subject: The network.
        split: Which split.
        classes: Names or numbers; default: all of up to ten classes, else the three most frequent,
            the three in the middle and the three rarest.
        loss: Plain cross-entropy (``ce``), or that of the run.
        steps: Lanczos steps per run.
        runs: Number of random starts.
        images: Number of images per class at most, drawn by the run's seed. The paper takes all,
            which takes hours on a CPU for a head class of 5,000.
        batch_size: Images at a time.
        beside: Other networks to compare with; on the command line their run folders, or JSON files
            of this analysis.
        fresh: Discard the results of an earlier call.

    Raises:
        UserError: An earlier call measured with other settings.
    """
    labels = _chosen(subject, split, classes)
    common = shared([subject.classes.names[c] for c in labels], beside)
    measured = {
        **{"split": split, "loss": loss, "steps": steps, "images": images},
        **{"sha256": subject.sha256, "data": subject.data.identity()["training_set"]},
    }
    entries = {} if fresh else _earlier(subject, measured)
    rows = {c: subject.rows(split, c, images) for c in labels}
    console = Console()
    columns = *Progress.get_default_columns(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        done = {c: entries.get(str(c), {}).get("runs", {}) for c in labels}
        todo = {c: sum(str(r) not in done[c] for r in range(runs)) for c in labels}
        total = sum(len(rows[c]) * steps * _passes(subject, todo[c], steps) for c in labels)
        task = progress.add_task("", total=total)
        for c in labels:
            progress.update(task, description=subject.classes.names[c])
            entry = entries.setdefault(str(c), _describe(subject, split, c, rows[c]))
            while missing := [r for r in range(runs) if str(r) not in entry["runs"]]:
                target = class_loss(
                    subject, split, rows[c], loss, batch_size, lambda n: progress.advance(task, n)
                )
                together = missing[: _together(target.size, steps)]
                key = (target.size, seeding.run_seed(), "lanczos")
                starts = torch.stack([rademacher(*key, run) for run in together])
                spaces = lanczos(target.products, starts.to(subject.device), steps)
                entry["parameters"] = target.size
                for run, krylov in zip(together, spaces, strict=True):
                    entry["runs"][str(run)] = _kept(krylov)
                entry.update(spectra.extremes(entry["runs"].values(), target.size))
                subject.output.save(_result(subject, entries, measured))
            line = f"{entry['name']}, {entry['images']} images: {spectra.caption(entry)}"
            console.print(line, highlight=False, soft_wrap=True)
    result = _result(subject, entries, measured)
    shown = [entries[str(c)] for c in labels]
    result.figures[""] = spectra.picture({"": [shown[0], shown[-1]] if len(shown) > 1 else shown})
    if len(shown) > 2:
        result.figures["classes"] = spectra.by_class(shown)
    if beside:
        own = {entry["name"]: entry for entry in shown}
        networks = {subject.output.name: own, **beside}
        _compare(result, {name: [e[c] for c in common] for name, e in networks.items()})
    return result


def _chosen(subject: Subject, split: str, words: Sequence[str]) -> list[int]:
    order = subject.by_frequency(split)
    if words:
        named = {subject.label_of(word) for word in words}
        if absent := named - set(order):
            raise UserError(f"{split} has no images of class {sorted(absent)[0]}.")
        return [c for c in order if c in named]
    if len(order) <= 10:
        return order
    middle = (len(order) - SHOWN) // 2
    return [*order[:SHOWN], *order[middle : middle + SHOWN], *order[-SHOWN:]]


def _earlier(subject: Subject, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes of an earlier result with the same settings."""
    earlier = subject.output.read()
    if earlier is None:
        return {}
    before = earlier["measured"]
    differing = [f"{k}: {before[k]} there, {now[k]} now" for k in now if before[k] != now[k]]
    if differing:
        raise UserError(
            f"{subject.output.path} was measured with other settings ({'; '.join(differing)}).\n"
            "Use --fresh to start over, or another --output FOLDER."
        )
    classes: dict[str, Any] = earlier["classes"]
    return classes


def _together(size: int, steps: int) -> int:
    return max(1, BASIS_BYTES // (4 * size * min(steps, size)))


def _passes(subject: Subject, missing: int, steps: int) -> int:
    size = sum(p.numel() for p in subject.model.parameters() if p.requires_grad)
    return -(-missing // _together(size, steps))


def _describe(subject: Subject, split: str, label: int, rows: Rows) -> dict[str, Any]:
    measured = {"loss": 0.0, "accuracy": 0.0}
    for logits, labels in subject.logits(split, rows):
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        measured["loss"] += float(losses) / len(rows)
        measured["accuracy"] += float((logits.argmax(1) == labels).sum()) / len(rows)
    tested = subject.rows("test", label) if "test" in subject.data.splits else np.array([], int)
    scored = subject.logits("test", tested) if len(tested) else ()
    hits = [(logits.argmax(1) == labels).float().cpu() for logits, labels in scored]
    return {
        "name": subject.classes.names[label],
        "group": str(subject.classes.rank_of[label]),
        "train_images": int(subject.classes.counts[label]),
        "images": len(rows),
        **measured,
        "test_recall": float(torch.cat(hits).mean()) if hits else None,
        "runs": {},
    }


def _kept(krylov: Krylov) -> dict[str, Any]:
    return {
        "nodes": krylov.nodes.tolist(),
        "weights": krylov.weights.tolist(),
        "errors": [float(krylov.errors[0]), float(krylov.errors[-1])],
    }


def _result(subject: Subject, entries: Mapping[str, Any], measured: Mapping[str, Any]) -> Result:
    order = [str(c) for c in subject.by_frequency(measured["split"]) if str(c) in entries]
    classes = {c: entries[c] for c in order if entries[c]["runs"]}
    groups = {g: spectra.group_mean(classes.values(), g) for g in subject.classes.ranks}
    groups = {name: mean for name, mean in groups.items() if mean}
    summary = [
        (
            f"{name}: |λmin| / λmax",
            f"{spectra.short(mean['ratio'])} (λmin {mean['lambda_min']:.3g}, "
            f"λmax {mean['lambda_max']:.3g}, mean of {mean['classes']} "
            f"class{'es' if mean['classes'] > 1 else ''})",
        )
        for name, mean in groups.items()
    ]
    summary += [(f"class {entry['name']}", spectra.caption(entry)) for entry in classes.values()]
    return Result(
        title=f"Curvature of the loss of each class ({measured['split']} images, "
        f"{'plain cross-entropy' if measured['loss'] == 'ce' else 'the loss of the run'})",
        summary=summary,
        values={"measured": measured, "groups": groups, "classes": classes},
    )


def _compare(result: Result, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Add a comparison of the same classes in several runs to a result."""
    ends = {run: [entries[0], entries[-1]][: len(entries)] for run, entries in runs.items()}
    result.figures["beside"] = spectra.picture(ends)
    result.figures["ratios"] = spectra.ratios(runs)
    result.tables["beside"] = spectra.comparison(runs)
    for group in dict.fromkeys(entry["group"] for entry in next(iter(runs.values()))):
        means = {run: spectra.group_mean(entries, group) for run, entries in runs.items()}
        result.summary.append(
            (
                f"{group}: |λmin| / λmax of each run",
                ", ".join(f"{run} {spectra.short(mean['ratio'])}" for run, mean in means.items()),
            )
        )

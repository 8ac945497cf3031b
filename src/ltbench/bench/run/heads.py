"""Heads on finished runs: rows that a suite has without a line in its file.

``ltbench bench run SUITE --heads crt,ncm`` adds to a row ``ce`` the rows ``ce+crt`` and ``ce+ncm``:
the config of that head for the same data, ``crt_cifar10`` for a row of ``..._cifar10``, else
``crt_folder``; on the images of the finished run, without augmentation, so that its features are
computed once for all heads.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltbench import catalog, shipped
from ltbench.bench.run.jobs import State
from ltbench.bench.run.suite import Job, Overrides, Plan, settings, substitute
from ltbench.errors import UserError, unknown_name
from ltbench.records import Record, RunFolder, canonical
from ltbench.records.identity import digest

HEADS = {  # beginning of the names of its configs -> whether it changes the classifier of the run
    "crt": False,
    "lws": True,
    "taunorm": True,
    "ncm": False,
    "posthocla": True,
    "mislas": True,
}
ALL = "all"
_TUNED = ("taunorm", "posthocla")  # a constant, by validation images

_OF_THE_HEAD = {"batch_size", "sampler"}  # options of the data that the head's config knows best
_PLAIN: Overrides = {  # options of the data that say what training adds to the images
    "augment": [],
    "strong_augment": [],
    "views": None,
    "mu": 0,
}


def named(text: str) -> list[str]:
    """Read names of heads, separated by commas, or ``all``.

    Raises:
        UserError: There is no such head.
    """
    names = [*HEADS] if text == ALL else text.split(",")
    for name in names:
        if name not in HEADS:
            raise unknown_name("head", name, [*HEADS, ALL])
    return names


def with_heads(
    plan: Plan, states: Mapping[str, State], names: Sequence[str], last: Overrides
) -> tuple[Plan, list[str]]:
    """Add heads to the rows of a plan that have finished runs.

    Args:
        plan: Of the suite.
        states: Of its jobs.
        names: Of the heads.
        last: Overrides that come after all others.

    Returns:
        The plan with them, and which heads were left out and why.
    """
    jobs, rows = dict(plan.jobs), {row: dict(seeds) for row, seeds in plan.rows.items()}
    families, baselines, starts = dict(plan.families), dict(plan.baselines), dict(plan.starts)
    unfit: dict[tuple[str, str], dict[str, None]] = {}
    for row, seeds in plan.rows.items():
        for seed, keys in seeds.items():
            state = states[keys[-1]]
            if state.status != "done" or state.run is None:
                continue
            record, (kind, lacking) = RunFolder(state.run).read(), _classifier(state.run)
            for name in names:
                why = lacking
                if kind == "cosine" and HEADS[name]:
                    why = "its classifier is cosine, not linear"
                if name in _TUNED and "val" not in record["data"]["images"]:
                    why = "there are no validation images to choose its tau on"
                if f"{row}+{name}" in plan.rows:
                    why = "the suite already has such a row"
                if why:
                    unfit.setdefault((row, why), {})[name] = None
                    continue
                job = _job(plan.jobs[keys[-1]], record, row, name, last)
                jobs[job.key] = job
                rows.setdefault(job.name, {})[seed] = [*keys, job.key]
                families[job.name], baselines[job.name] = "heads", row
                starts[job.name] = row
    left_out = [f"{row} gets no {', '.join(each)}: {why}." for (row, why), each in unfit.items()]
    return replace(
        plan, jobs=jobs, rows=rows, families=families, baselines=baselines, starts=starts
    ), left_out


def _classifier(run: Path) -> tuple[str, str]:
    """Return the kind of a run's classifier, and why the run cannot get any head, if so."""
    from ltbench.runs.checkpoints import check_checkpoint  # torch is not needed otherwise

    path = RunFolder(run).checkpoint("last")
    if not path.is_file():
        return "", "its run has no weights here"
    try:
        network = check_checkpoint(path).get("ltbench_network")
    except UserError as error:
        return "", str(error).removesuffix(".")
    return (str(network.get("head")), "") if network else ("", "its run has no classifier")


def _job(start: Job, record: Record, row: str, head: str, last: Overrides) -> Job:
    config = _config(head, Path(start.config))
    overrides = _overrides(config, head, record, last) | {
        "model.init_from.path": f"{{{start.key}}}",
        **last,
    }
    recipe = substitute(overrides, {start.key: start.recipe})
    return Job(
        key=digest({"settings": settings(config, overrides), "seed": start.seed}),
        name=f"{row}+{head}",
        seed=start.seed,
        config=str(config),
        overrides=overrides,
        needs=[start.key],
        recipe=digest(settings(config, recipe)),
    )


def _config(head: str, start: Path) -> Path:
    """Return the config of a head for the data that the config of a run is for."""
    name = f"{head}_{start.stem.rpartition('_')[2]}"
    name = name if name in catalog.configs() else f"{head}_folder"
    return shipped.folder("configs") / f"{name}.yaml"


def _overrides(config: Path, head: str, record: Record, last: Overrides) -> dict[str, Any]:
    """Return the data and the trainer of a finished run, as far as a head shares them."""
    data, trainer = canonical(record["config"]["data"]), record["config"]["trainer"]
    options = {k: v for k, v in data["init_args"].items() if k not in _OF_THE_HEAD}
    options |= {k: v for k, v in _PLAIN.items() if k in options}
    if options.get("decoding"):
        options["decoding"] = {**options["decoding"], "random_crop": None}
    if "steps_per_epoch" in options:
        size = settings(config, last)["data.batch_size"]
        options["steps_per_epoch"] = math.ceil(sum(record["data"]["class_counts"]) / size)
    names = ("accelerator", "devices", "precision")
    shared = {f"trainer.{k}": trainer[k] for k in names if trainer.get(k) not in (None, "auto")}
    if head in _TUNED:
        shared["model.tau"] = None
    return {
        "data.class_path": data["class_path"],
        **{f"data.{name}": value for name, value in options.items()},
        **shared,
    }

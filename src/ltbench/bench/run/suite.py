"""A suite: rows of stages, in a YAML file, and the jobs that follow from it.

```yaml
# What the suite is for, in a sentence.
seeds: [0, 1, 2]
overrides: {trainer.max_epochs: 30}        # of every stage: shared data and budget
rows:
  ce: {config: ce_cifar10}                 # a row of one stage
  cesam: {config: cesam_cifar10, baseline: ce}      # what it adds to ce is shown, too
  deit_lt:
    family: distillation
    stages:                                # the last one is the row's result
      teacher: {config: vssam_cifar10, seed: 0}
      student:
        config: deitlt_cifar10
        overrides: {model.teacher.path: "{teacher}"}
```

``{teacher}`` stands for the run folder of an earlier stage: of a stage of the same row, else of
another row's last stage, else ``{row.stage}``. A stage that several rows share is one job.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from ltbench import catalog, shipped
from ltbench.errors import UserError, unknown_name
from ltbench.records import parse_yaml
from ltbench.records.identity import digest, with_revisions

_NAME = re.compile(r"[\w.+-]+")
_REFERENCE = re.compile(rf"\{{({_NAME.pattern})\}}")
_SUITE_KEYS = {"seeds", "overrides", "rows"}
_ROW_KEYS = {"family", "baseline", "overrides", "stages"}
_STAGE_KEYS = {"config", "overrides", "seed"}

Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One training of a row."""

    config: Path
    overrides: Overrides  # arguments -> values, after those of suite and row
    seed: int | None = None  # None: that of the row


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard: the result of its last stage."""

    name: str
    family: str  # what kind of method it is
    stages: Mapping[str, Stage]  # in order
    baseline: str = ""  # the row that shows what the method adds; may be empty


@dataclass(frozen=True)
class Suite:
    """The content of a suite's file."""

    name: str
    seeds: Sequence[int]
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Job:
    """One process of ``ltbench fit``."""

    key: str  # 16 hex digits: a hash of settings, seed and the keys of the jobs it needs
    name: str
    seed: int
    config: str
    overrides: Overrides  # ``{<key>}`` in a value stands for the run folder of another job
    needs: Sequence[str] = ()  # keys of those jobs
    recipe: str = ""  # a hash of the settings alone, which other seeds share


@dataclass(frozen=True)
class Plan:
    """The jobs of a suite, each after those it needs, and the rows that they make up."""

    suite: str
    jobs: Mapping[str, Job]  # by key
    rows: Mapping[str, Mapping[int, Sequence[str]]]  # row -> seed -> keys of its stages
    families: Mapping[str, str] = field(default_factory=dict)  # by row
    baselines: Mapping[str, str] = field(default_factory=dict)  # by row, where it has one
    starts: Mapping[str, str] = field(default_factory=dict)  # head's row -> row of its start

    def after(self, earlier: "Plan") -> "Plan":
        """Return an earlier plan, extended and overwritten by the rows and seeds of this one."""
        rows = {
            name: {**earlier.rows.get(name, {}), **self.rows.get(name, {})}
            for name in {**earlier.rows, **self.rows}
        }
        jobs = {**earlier.jobs, **self.jobs}
        used = {key for seeds in rows.values() for stages in seeds.values() for key in stages}
        families = {**earlier.families, **self.families}
        baselines = {
            row: baseline for row, baseline in earlier.baselines.items() if row not in self.families
        }
        return Plan(
            self.suite,
            with_needs(used, jobs),
            rows,
            families,
            {**baselines, **self.baselines},
            {**earlier.starts, **self.starts},
        )


def with_needs(keys: Iterable[str], jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Return jobs and those they need, of an ordered mapping, in its order."""
    used = set(keys)
    for key in reversed(list(jobs)):
        used.update(jobs[key].needs if key in used else ())
    return {key: job for key, job in jobs.items() if key in used}


def find(name: str) -> Path:
    """Return the file of a suite, by its name or path.

    Raises:
        UserError: There is no such suite.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f"there is no suite {path}.")
    if name not in catalog.suites():
        raise unknown_name("suite", name, catalog.suites())
    return shipped.folder("benchmarks") / f"{name}.yaml"


def read(path: Path, overrides: Overrides | None = None) -> Suite:
    """Read and check a suite; ``overrides`` come after all others.

    Raises:
        UserError: It is not YAML, or something in it is unknown or missing.
    """
    try:
        content = parse_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a readable suite: {reason}") from error
    _check(content, _SUITE_KEYS, str(path))
    seeds = content.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(map(is_seed, seeds))):
        raise UserError(
            f"{path}: seeds must be a list of whole numbers from 0 to 2^32 - 1, not {seeds!r}."
        )
    if not content.get("rows"):
        raise UserError(f"{path} has no rows.")
    rows = {}
    for name, row in _check(content["rows"], None, f"{path}: rows").items():
        where = f"{path}: row '{name}'"
        _check(row, _ROW_KEYS | _STAGE_KEYS, where)
        if ("config" in row) == ("stages" in row) or row.get("stages") == {}:
            raise UserError(f"{where} needs either a config or stages.")
        stages = row.get("stages", {name: {k: v for k, v in row.items() if k in _STAGE_KEYS}})
        shared = {**content.get("overrides", {}), **row.get("overrides", {})}
        name = _named(name, where)
        stage_of = {
            _named(stage, f"{where}, stage '{stage}'"): _stage(
                settings, shared, overrides or {}, f"{where}, stage '{stage}'", path
            )
            for stage, settings in _check(stages, None, f"{where}, stages").items()
        }
        baseline = str(row.get("baseline") or "")
        rows[name] = Row(name, str(row.get("family", "")), stage_of, baseline)
    for row in rows.values():
        others = rows.keys() - {row.name}
        if row.baseline and row.baseline not in others:
            wrong = unknown_name("baseline", row.baseline, others)
            raise UserError(f"{path}: row '{row.name}': {wrong}")
    return Suite(path.stem, seeds, rows)


def _named(name: object, where: str) -> str:
    """Check the name of a row or stage, which references use and a folder bears."""
    if not _NAME.fullmatch(str(name)):
        raise UserError(
            f"{where}: its name becomes that of a folder: use only letters, digits and . _ + -"
        )
    return str(name)


def is_seed(value: object) -> bool:
    """Say whether torch, numpy and Python all accept a value as a seed."""
    return type(value) is int and 0 <= value < 2**32


def _check(content: Any, keys: set[str] | None, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a mapping of names to values, not {content!r}.")
    for key in content:
        if keys and key not in keys:
            raise UserError(f"{where}: {unknown_name('key', str(key), keys)}")
    if "overrides" in content:
        _check(content["overrides"], None, f"{where}, overrides")
    return content


def _stage(
    settings: dict[str, Any], shared: Overrides, last: Overrides, where: str, suite: Path
) -> Stage:
    _check(settings, _STAGE_KEYS, where)
    if "config" not in settings:
        raise UserError(f"{where} needs a config.")
    name = str(settings["config"])
    if name.endswith(".yaml"):
        config = Path(name) if Path(name).is_file() else suite.parent / name
    else:
        config = shipped.folder("configs") / f"{name}.yaml"
    if not config.is_file():
        raise UserError(f"{where}: {unknown_name('config', name, catalog.configs())}")
    seed = settings.get("seed")
    if seed is not None and not is_seed(seed):
        raise UserError(f"{where}: seed must be a whole number from 0 to 2^32 - 1, not {seed!r}.")
    return Stage(config, {**shared, **settings.get("overrides", {}), **last}, seed)


def plan(
    suite: Suite, seeds: Iterable[int] | None = None, rows: Iterable[str] | None = None
) -> Plan:
    """Lay out the jobs of a suite.

    Args:
        suite: The suite.
        seeds: In place of the suite's.
        rows: Only these, in this order, with the stages of other rows that they need.

    Raises:
        UserError: A row or stage is unknown, or stages need each other.
    """
    seeds = list(seeds or suite.seeds)
    rows = list(rows or suite.rows)
    for name in rows:
        if name not in suite.rows:
            raise UserError(f"suite {suite.name}: {unknown_name('row', name, suite.rows)}")
    chosen = [suite.rows[name] for name in rows]
    places = [(row.name, stage) for row in chosen for stage in row.stages]
    needs: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for place in places:  # which grows by what they need
        row = suite.rows[place[0]]
        overrides = row.stages[place[1]].overrides
        needs[place] = {_target(suite, row, name) for name in references(overrides)}
        places += sorted(needs[place] - set(places))
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        cycle = " -> ".join(".".join(place) for place in error.args[1])
        raise UserError(f"suite {suite.name}: stages need each other: {cycle}.") from None
    jobs: dict[str, Job] = {}
    keys: dict[tuple[str, str, int], str] = {}
    for place in order:
        row, stage = suite.rows[place[0]], suite.rows[place[0]].stages[place[1]]
        for seed in seeds:
            upstream = {
                name: jobs[keys[(*_target(suite, row, name), seed)]]
                for name in references(stage.overrides)
            }
            job = _job(row, place[1], seed, upstream)
            keys[(*place, seed)] = job.key
            if job.key not in jobs or job.name == row.name:  # a row's name before a stage's
                jobs[job.key] = job
    stages = {
        row.name: {seed: [keys[row.name, stage, seed] for stage in row.stages] for seed in seeds}
        for row in chosen
    }
    return Plan(
        suite.name,
        jobs,
        stages,
        {row.name: row.family for row in chosen},
        {row.name: row.baseline for row in chosen if row.baseline},
    )


def _job(row: Row, name: str, seed: int, upstream: Mapping[str, Job]) -> Job:
    stage = row.stages[name]
    seed = seed if stage.seed is None else stage.seed
    keys = {name: f"{{{job.key}}}" for name, job in upstream.items()}
    recipes = {name: f"{{{job.recipe}}}" for name, job in upstream.items()}
    overrides = substitute(stage.overrides, keys)
    content = settings(stage.config, overrides)
    revised = with_revisions(nested(content))
    of_recipe: Any = settings(stage.config, substitute(stage.overrides, recipes))
    return Job(
        key=digest({"settings": content, "seed": seed, **revised}),
        name=row.name if name == list(row.stages)[-1] else f"{row.name}.{name}",
        seed=seed,
        config=str(stage.config),
        overrides=overrides,
        needs=sorted({job.key for job in upstream.values()}),
        recipe=digest([of_recipe, revised] if revised else of_recipe),
    )


def _target(suite: Suite, row: Row, reference: str) -> tuple[str, str]:
    if reference in row.stages:
        return row.name, reference
    if reference in suite.rows:
        return reference, list(suite.rows[reference].stages)[-1]
    other, _, stage = reference.rpartition(".")
    if other in suite.rows and stage in suite.rows[other].stages:
        return other, stage
    raise UserError(
        f"suite {suite.name}, row '{row.name}': "
        f"{unknown_name('stage', reference, [*row.stages, *suite.rows])}"
    )


def references(value: Any) -> list[str]:  # noqa: ANN401 - settings are recursive
    """Return the names in braces in any string of a value, each once."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return list(dict.fromkeys(name for item in value for name in references(item)))
    return _REFERENCE.findall(value) if isinstance(value, str) else []


def substitute(value: Any, replacements: Mapping[str, str]) -> Any:  # noqa: ANN401
    """Return a value with each name in braces, in any of its strings, replaced."""
    if isinstance(value, Mapping):
        return {key: substitute(item, replacements) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, replacements) for item in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: replacements[match[1]], value)
    return value


def settings(config: Path, overrides: Overrides) -> dict[str, Any]:
    """Return a config with overrides as one flat mapping: one experiment has one spelling.

    ``model.init_args.loss`` and ``model.loss`` are the same argument.
    """
    try:
        content = _parsed(config.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{config} is not a readable config: {reason}") from error
    flat = flatten(_check(content, None, str(config)))
    for name, value in flatten(dict(overrides)).items():
        parts = name.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts))}
        flat = {
            key: old
            for key, old in flat.items()
            if key != name and not key.startswith(f"{name}.") and key not in above
        }
        flat[name] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted names -> values as nested settings, without ``init_args``."""
    whole: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        part = whole
        for key in above:
            if not isinstance(part.get(key), dict):
                part[key] = {}
            part = part[key]
        part[last] = value
    return whole


@lru_cache
def _parsed(text: str) -> Any:  # noqa: ANN401 - YAML is recursive; a suite reads a config often
    return parse_yaml(text)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted names -> values, without ``init_args`` in the names."""
    flat: dict[str, Any] = {}
    for key, item in (value or {}).items():
        name = ".".join(p for p in f"{prefix}.{key}".split(".") if p not in ("", "init_args"))
        flat |= flatten(item, name) if isinstance(item, Mapping) and item else {name: item}
    return flat

"""``ltbench bench``: run a suite, say how far it is, publish it, reproduce one of its jobs."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ltbench.bench.run import estimate
from ltbench.bench.run import suite as suites
from ltbench.bench.run.jobs import Store
from ltbench.bench.run.launchers import Launcher, Local
from ltbench.bench.run.runner import Runner, wanted
from ltbench.bench.run.status import Board, duration
from ltbench.bench.run.suite import Plan, Suite
from ltbench.errors import UserError, unknown_name
from ltbench.runs.arguments import Arguments, whole_number

FOLDER = Path("runs/bench")


def bench_command(args: Sequence[str]) -> None:
    """Dispatch ``ltbench bench ACTION ...``."""
    actions = {"run": run, "status": status, "export": export, "reproduce": reproduce}
    if not args or args[0] in ("-h", "--help"):
        print("usage: ltbench bench run|status|export|reproduce ...   (each has --help)")
        return
    if args[0] not in actions:
        raise unknown_name("action", args[0], actions)
    actions[args[0]](args[1:])


def run(args: Sequence[str]) -> None:
    """Run what is not done of a suite; exit with 1 if anything failed."""
    parser = _parser("run", "Run what is not done of a suite.")
    parser.add_argument("--seeds", type=_seeds, help="for example 0,1,2; default: the suite's")
    parser.add_argument("--rows", type=_names, help="for example ce,vs; default: all")
    parser.add_argument("--only-failed", action="store_true", help="run again what failed, alone")
    together = parser.add_mutually_exclusive_group()
    together.add_argument(
        "--jobs", type=whole_number, help="at a time; default: one a GPU, else one a core"
    )
    together.add_argument("--pack", type=whole_number, help="at a time on each GPU")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and how long")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    given, rest = parser.parse_known_args(args)
    extra = overrides(rest)
    cluster = {name: extra.pop(name) for name in list(extra) if name.startswith("slurm.")}
    suite = suites.read(suites.find(given.suite), extra)
    plan = suites.plan(suite, given.seeds, given.rows)
    store, console = Store(given.folder), Console()
    launcher = _launcher(given, cluster)
    if given.dry_run:
        dry_run(suite, plan, store, launcher, given.only_failed)
        return
    store.save(plan)
    with Board(plan, console, launcher.slots) as board:
        states = Runner(plan, store, launcher, given.only_failed, board.update).run()
    if any(state.status != "done" for state in states.values()):
        raise SystemExit(1)


def _launcher(given: argparse.Namespace, cluster: Mapping[str, Any]) -> Launcher:
    if given.launcher == "local":
        return Local(given.jobs, given.pack)
    if given.pack:
        raise UserError("--pack is for the GPUs of this machine; a job of Slurm has its own.")
    from ltbench.bench.run.slurm import Slurm

    parameters = {name.removeprefix("slurm."): value for name, value in cluster.items()}
    return Slurm(given.folder, given.jobs, parameters)


def dry_run(
    suite: Suite, plan: Plan, store: Store, launcher: Launcher, only_failed: bool = False
) -> None:
    """Print what is left to run and how long it takes, from what was measured; run nothing of it.

    Recipes about which nothing is known are timed for a few steps.
    """
    console = Console()
    before = store.states(plan)
    todo = wanted(before, only_failed)
    states = {  # what failed is run again
        key: replace(state, status="waiting") if key in todo else state
        for key, state in before.items()
    }
    unknown = set(todo) - estimate.totals(plan, states).keys()
    probed: estimate.Seconds = {}
    if unknown:
        told = f"timing {estimate.BATCHES} steps of what was never run ..."
        console.print(told)
        with console.status(told):
            probed, failed = estimate.probe(suite, plan, unknown, store, launcher)
        for name, cause in failed.items():
            console.print(f"{name} cannot be timed: {cause}", markup=False, highlight=False)
    whole = estimate.totals(plan, states, probed)
    remaining = {key: s for key, s in estimate.left(plan, states, whole).items() if key in todo}
    table = Table("job", "seed", "state", Column("time", justify="right"), box=None)
    for key, job in plan.jobs.items():
        time = duration(remaining[key]) if key in remaining and key in whole else "unknown"
        table.add_row(
            escape(job.name), str(job.seed), before[key].status, time if key in todo else ""
        )
    console.print(table)
    told = f"{len(todo)} of {len(plan.jobs)} jobs left"
    if remaining and whole:
        wall = duration(estimate.makespan(plan, remaining, launcher.slots))
        told += f", {duration(sum(remaining.values()))} in all; about {wall} with "
        told += f"{launcher.slots} at a time, {launcher.threads} threads each"
    console.print(f"{told}.", highlight=False, soft_wrap=True)


def status(args: Sequence[str]) -> None:
    """Say how far a suite is."""
    given = _parser("status", "Say how far a suite is.").parse_args(args)
    store = Store(given.folder)
    plan = store.load(Path(given.suite).stem)
    Board(plan, Console()).show(store.states(plan))


def export(args: Sequence[str]) -> None:
    """Copy what a leaderboard needs of a suite's finished jobs, to be published."""
    from ltbench.bench.show.export import export

    parser = _parser("export", "Copy a suite's finished jobs, without weights, to be published.")
    parser.add_argument("--to", type=Path, required=True, help="for example benchmarks/results")
    given = parser.parse_args(args)
    store = Store(given.folder)
    count = export(store.load(Path(given.suite).stem), store, given.to)
    print(f"{count} jobs: ltbench leaderboard {given.suite} --folder {given.to}")


def reproduce(args: Sequence[str]) -> None:
    """Run a job again from its record; exit with 1 if the metrics differ."""
    from ltbench.bench.run.reproduce import reproduce

    parser = Arguments("ltbench bench reproduce")
    parser.add_argument("job", help="run folder, record, or the start of a job id")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduced"))
    parser.add_argument("--tolerance", type=float, default=0.0, help="of a metric; default: 0")
    given, rest = parser.parse_known_args(args)
    if not reproduce(given.job, given.folder, rest, given.tolerance):
        raise SystemExit(1)


def _parser(action: str, description: str) -> argparse.ArgumentParser:
    parser = Arguments(
        f"ltbench bench {action}",
        description=description,
        epilog="Further --ARGUMENT VALUE pairs are given to every stage, after its own overrides."
        if action == "run"
        else None,
    )
    parser.add_argument("suite", help="name (ltbench list suites) or file")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    return parser


def _seeds(text: str) -> list[int]:
    seeds = [int(seed) if seed.isdecimal() else None for seed in text.split(",")]
    if not all(map(suites.is_seed, seeds)):
        told = f"'{text}' is no list of seeds such as 0,1,2, up to 2^32 - 1"
        raise argparse.ArgumentTypeError(told)
    return [seed for seed in seeds if seed is not None]


def _names(text: str) -> list[str]:
    return text.split(",")


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--name value`` and ``--name=value`` pairs.

    Raises:
        UserError: A name without a value, or a value without a name.
    """
    found, rest = {}, list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise UserError(f"cannot read '{name}': give --NAME VALUE, as to ltbench fit.")
        text = value if equals else rest.pop(0)
        try:
            found[name.removeprefix("--")] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"cannot read the value '{text}' of {name}: it is no YAML.") from error
    return found

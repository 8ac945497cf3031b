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

from ltbench.bench.run import estimate, heads
from ltbench.bench.run import suite as suites
from ltbench.bench.run.jobs import Store
from ltbench.bench.run.launchers import Launcher, Local
from ltbench.bench.run.runner import Runner, unfinished
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
    """Run the jobs of a suite that are not done; exit with 1 if anything failed."""
    parser = _parser("run", "Run the jobs of a suite that are not done.")
    parser.add_argument("--seeds", type=_seeds, help="for example 0,1,2; default: the suite's")
    parser.add_argument(
        "--rows", type=lambda text: text.split(","), help="for example ce,vs; default: all"
    )
    parser.add_argument(
        "--heads",
        type=heads.named,
        help="add these heads to every row that has a finished run, for example crt,ncm, or all: "
        + ", ".join(heads.HEADS),
    )
    parser.add_argument("--only-failed", action="store_true", help="run only failed jobs again")
    together = parser.add_mutually_exclusive_group()
    together.add_argument(
        "--jobs", type=whole_number, help="at a time; default: one per GPU, else one per core"
    )
    together.add_argument("--pack", type=whole_number, help="at a time on each GPU")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would run, and how long it takes"
    )
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    options, others = parser.parse_known_args(args)
    settings = overrides(others)
    cluster = {name: settings.pop(name) for name in list(settings) if name.startswith("slurm.")}
    suite = suites.read(suites.find(options.suite), settings)
    plan = suites.plan(suite, options.seeds, options.rows)
    store, console = Store(options.folder), Console()
    launcher = _launcher(options, cluster)
    if options.dry_run:
        whole = _with_heads(plan, store, options.heads, settings, console)
        dry_run(suite, plan, store, launcher, options.only_failed, whole)
        return
    rounds: list[list[str]] = [[], options.heads] if options.heads else [[]]
    for names in rounds:  # heads once the suite has run
        plan = _with_heads(plan, store, names, settings, console)
        store.save(plan)
        with Board(plan, console, launcher.slots) as board:
            states = Runner(plan, store, launcher, options.only_failed, board.update).run()
    if any(state.status != "done" for state in states.values()):
        raise SystemExit(1)


def _with_heads(
    plan: Plan, store: Store, names: Sequence[str], last: Mapping[str, Any], console: Console
) -> Plan:
    """Add heads to the rows that have finished runs, and say which were left out."""
    if not names:
        return plan
    plan, left_out = heads.with_heads(plan, store.states(plan), names, last)
    for line in left_out:
        console.print(line, markup=False, highlight=False)
    return plan


def _launcher(options: argparse.Namespace, cluster: Mapping[str, Any]) -> Launcher:
    if options.launcher == "local":
        return Local(options.jobs, options.pack)
    if options.pack:
        raise UserError(
            "--pack is for the GPUs of this machine; Slurm gives each job its own: leave it out."
        )
    from ltbench.bench.run.slurm import Slurm

    parameters = {name.removeprefix("slurm."): value for name, value in cluster.items()}
    return Slurm(options.folder, options.jobs, parameters)


def dry_run(
    suite: Suite,
    plan: Plan,
    store: Store,
    launcher: Launcher,
    only_failed: bool = False,
    whole_plan: Plan | None = None,
) -> None:
    """Print which jobs are left and how long they take; run none of them.

    Recipes of the suite that were never run are timed for a few steps; ``whole_plan`` may add heads
    to its rows, which are not timed.
    """
    console, own = Console(), plan
    plan = whole_plan or plan
    before = store.states(plan)
    todo = unfinished(before, only_failed)
    states = before | {key: replace(before[key], status="waiting") for key in todo}
    unknown = (set(todo) & own.jobs.keys()) - estimate.totals(plan, states).keys()
    probed: estimate.Seconds = {}
    if unknown:
        message = f"timing {estimate.BATCHES} steps of jobs that were never run ..."
        console.print(message)
        with console.status(message):
            probed, failed = estimate.probe(suite, own, unknown, store, launcher)
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
    message = f"{len(todo)} of {len(plan.jobs)} jobs left"
    if remaining and whole:
        wall = duration(estimate.makespan(plan, remaining, launcher.slots))
        message += f", {duration(sum(remaining.values()))} in all; about {wall} with "
        message += f"{launcher.slots} at a time, {launcher.threads} threads each"
    console.print(f"{message}.", highlight=False, soft_wrap=True)


def status(args: Sequence[str]) -> None:
    """Show how far a suite is."""
    options = _parser("status", "Show how far a suite is.").parse_args(args)
    store = Store(options.folder)
    plan = store.load(Path(options.suite).stem)
    console = Console()
    console.print(Board(plan, console).view(store.states(plan)))


def export(args: Sequence[str]) -> None:
    """Copy what a leaderboard needs of a suite's finished jobs, to publish it."""
    from ltbench.bench.show.export import export

    parser = _parser(
        "export", "Copy the finished jobs of a suite, without weights, to publish them."
    )
    parser.add_argument("--to", type=Path, required=True, help="for example benchmarks/results")
    options = parser.parse_args(args)
    store = Store(options.folder)
    count = export(store.load(Path(options.suite).stem), store, options.to)
    print(f"{count} jobs: ltbench leaderboard {options.suite} --folder {options.to}")


def reproduce(args: Sequence[str]) -> None:
    """Run a job again from its record; exit with 1 if the metrics differ."""
    from ltbench.bench.run.reproduce import reproduce

    parser = Arguments("ltbench bench reproduce")
    parser.add_argument("job", help="run folder, record, or the start of a job id")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduced"))
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference of a metric; default: 0"
    )
    options, others = parser.parse_known_args(args)
    if not reproduce(options.job, options.folder, others, options.tolerance):
        raise SystemExit(1)


def _parser(action: str, description: str) -> argparse.ArgumentParser:
    parser = Arguments(
        f"ltbench bench {action}",
        description=description,
        epilog="Further --ARGUMENT VALUE pairs override the settings of every stage."
        if action == "run"
        else None,
    )
    parser.add_argument("suite", help="name (ltbench list suites) or file")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    return parser


def _seeds(text: str) -> list[int]:
    seeds = [int(seed) if seed.isdecimal() else None for seed in text.split(",")]
    if not all(map(suites.is_seed, seeds)):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of seeds from 0 to 2^32 - 1, such as 0,1,2"
        )
    return [seed for seed in seeds if seed is not None]


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--name value`` and ``--name=value`` pairs.

    Raises:
        UserError: A name without a value, or a value without a name.
    """
    values, left = {}, list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("--") or not (equals or left):
            raise UserError(f"cannot read '{name}': write --NAME VALUE, as for ltbench fit.")
        text = value if equals else left.pop(0)
        try:
            values[name.removeprefix("--")] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(
                f"cannot read the value '{text}' of {name}: it is not valid YAML."
            ) from error
    return values

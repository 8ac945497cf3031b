"""What the speed scripts share: turns, clocks, the machine, the table and the JSON file.

Candidates take turns, a few calls each, so that whatever slows the machine slows all of them alike.
One turn of each is a repeat; ratios are taken within a repeat, and the median over the repeats
counts. Processor time stands beside wall time because it holds on a busy machine, where wall time
does not. It counts threads that wait for each other as busy and leaves out waits for the disk, so
the goals are on wall time.
"""

import argparse
import json
import operator
import os
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ltbench import records

HERE = Path(__file__).parent
CLOCKS = ("wall", "processor")
BOUNDS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

Candidate = Callable[[], object]
Seconds = Mapping[str, float]
"""By candidate: seconds for one unit of work."""


@dataclass
class Row:
    """One line of a script's table.

    Args:
        title: What the number is.
        values: The number on each clock; a number without a clock stands under ``wall``.
        goal: A bound such as ``<= 2.02``; empty where the number is only told.
        unit: Of the number; empty for a ratio.
    """

    title: str
    values: Mapping[str, float]
    goal: str = ""
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met on wall time; None without a goal."""
        return met(self.goal, self.values["wall"])


class Rounds:
    """The seconds of candidates that take turns.

    Args:
        title: What the candidates have in common, where a script has several sets of them.
        device: Where they compute; the clock waits for it.
        clocks: Which clocks tell the truth: that of the processor leaves out processes that are
            still running.
        parallel: Whether a candidate's finished processes count as its own.

    Attributes:
        repeats: By candidate: units of work done, then seconds of wall and of processor time.
    """

    def __init__(
        self,
        title: str = "",
        device: torch.device | str = "cpu",
        clocks: Sequence[str] = CLOCKS,
    ) -> None:
        self.title, self.device, self.clocks = title, torch.device(device), tuple(clocks)
        self.repeats: list[dict[str, NDArray[np.float64]]] = []
        self._open: dict[str, NDArray[np.float64]] = defaultdict(partial(np.zeros, 3))
        self._names: list[str] = []

    def now(self) -> NDArray[np.float64]:
        """Read the clocks, once the device is done; finished child processes count too."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = time.process_time() + children.ru_utime + children.ru_stime
        return np.array([time.perf_counter(), processor])

    def count(self, name: str, work: float, since: NDArray[np.float64]) -> None:
        """Add units of work that a candidate has done since the clocks were read."""
        self._open[name] += [work, *(self.now() - since)]
        if name not in self._names:
            self._names.append(name)

    def turn(self, name: str, call: Candidate, calls: int = 1, work: float = 1) -> None:
        """Let a candidate take its turn: some calls of ``work`` units each."""
        since = self.now()
        for _ in range(calls):
            call()
        self.count(name, calls * work, since)

    def close(self, keep: bool = True) -> None:
        """End a repeat; one that was a warm-up is not kept."""
        if keep:
            self.repeats.append({name: self._open[name] for name in self._names})
        self._open.clear()

    def row(
        self, title: str, of: Callable[[Seconds], float], goal: str = "", unit: str = ""
    ) -> Row:
        """Return the median over the repeats of what follows from the seconds of each.

        Args:
            title: What it is.
            of: Maps the seconds for a unit of work, by candidate, to the number.
            goal: Its bound.
            unit: Of the number.
        """
        values = {
            clock: median(
                of({name: found[column] / found[0] for name, found in repeat.items()})
                for repeat in self.repeats
            )
            for column, clock in enumerate(CLOCKS, start=1)
            if clock in self.clocks
        }
        return Row(title, values, goal, unit)

    def gains(self, base: str) -> list[Row]:
        """Return each other candidate's speed over that of one."""
        return [
            self.row(f"images/s, {name} / {base}", lambda s, name=name: s[base] / s[name])
            for name in self.repeats[0]
            if name != base
        ]

    def rates(self, unit: str) -> list[Row]:
        """Return each candidate's units of work a second."""
        named = f"{self.title}: " if self.title else ""
        return [
            self.row(f"{named}{name}", lambda seconds, name=name: 1 / seconds[name], unit=unit)
            for name in self.repeats[0]
        ]


def take_turns(
    candidates: Mapping[str, Candidate],
    repeats: int,
    calls: int | Mapping[str, int] = 1,
    work: float = 1,
    rounds: Rounds | None = None,
) -> Rounds:
    """Let candidates take turns, after one round that does not count.

    Args:
        candidates: What is called, by name.
        repeats: Rounds that count.
        calls: Calls of a turn, or those of each candidate that takes more than one.
        work: Units of work of a call.
        rounds: Where the seconds go.
    """
    rounds = rounds or Rounds()
    order = list(candidates)
    each = {name: calls if isinstance(calls, int) else calls.get(name, 1) for name in order}
    for repeat in range(1 + repeats):
        for name in order:
            rounds.turn(name, candidates[name], each[name], work)
        order.reverse()  # whoever follows another may find a colder cache
        rounds.close(keep=repeat > 0)
    return rounds


def met(goal: str, value: float) -> bool | None:
    """Return whether a number keeps to a bound such as ``<= 2.02``; None without one."""
    if not goal:
        return None
    sign, bound = goal.split()
    return bool(BOUNDS[sign](value, float(bound)))


def peak_memory() -> int:
    """Return the most bytes that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Parser(argparse.ArgumentParser):
    """The command line of a script, which begins with a look at the machine.

    Args:
        file: The script; its results go to the JSON file of its name.
        question: Its docstring, whose first paragraph is the question.
        repeats: How often each candidate takes its turn.
    """

    def __init__(self, file: str, question: str | None, repeats: int = 5) -> None:
        first, _, rest = (question or "").partition("\n\n")
        self.question = " ".join(first.split())
        super().__init__(
            description=f"{first}\n\n{rest}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--root", type=Path, help="folder of images, where it takes any")
        self.add_argument("--repeats", type=int, default=repeats)
        self.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
        self.add_argument("--output", type=Path, default=Path(file).with_suffix(".json"))

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]  # noqa: ANN401
        """Parse, set the number of threads, and describe the machine before it is busy."""
        given = super().parse_args(*args, **kwargs)
        if given.threads:
            torch.set_num_threads(given.threads)
        given.question, given.machine = self.question, machine()
        return given


def machine() -> dict[str, Any]:
    """Describe the machine as it is now."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
    }


def report(
    args: argparse.Namespace,
    rows: Sequence[Row],
    *rounds: Rounds,
    unit: str = "calls/s",
    **setting: Any,  # noqa: ANN401 - whatever JSON can hold
) -> None:
    """Print the table and write the JSON file.

    Args:
        args: What :class:`Parser` made of the command line.
        rows: The answer, goals first.
        *rounds: What was measured.
        unit: Of each candidate's speed.
        **setting: What the numbers depend on: sizes, precision, networks.
    """
    result = {
        "question": args.question,
        "answer": [_plain(row) for row in rows],
        "speeds": [_plain(row) for each in rounds for row in each.rates(unit)],
        "setting": setting,
        "machine": args.machine,
        "versions": records.versions(),
        "git": records.git_state(Path(records.__file__)),
        "repeats": {
            each.title: [
                {
                    name: dict(zip(("work", *each.clocks), found.round(6).tolist(), strict=False))
                    for name, found in repeat.items()
                }
                for repeat in each.repeats
            ]
            for each in rounds
        },
    }
    Console().print(_table(result))
    text = json.dumps(result, indent=1) + "\n"
    records.write_whole(args.output, lambda file: file.write(text.encode()))
    Console().print(f"Written: {args.output}")


def _plain(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"title": row.title, **row.values}
    if row.unit:
        found["unit"] = row.unit
    if row.goal:
        found |= {"goal": row.goal, "met": row.met}
    return found


def shown(value: float | None) -> str:
    """Return a number for people: three decimals of a ratio, all that stands before the point."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}"


def _table(result: dict[str, Any]) -> Table:
    found = result["machine"]
    table = Table(
        title=result["question"],
        caption=f"{found['cpu']}, {found['threads']} threads, {found['device']}, load average at "
        f"the start {found['load'][0]:.1f}; medians",
    )
    table.add_column("")
    for heading in ("goal", "wall time", "processor time", ""):
        table.add_column(heading, justify="right")
    for part in ("answer", "speeds"):
        for row in result[part]:
            numbers = (shown(row.get(clock)) for clock in CLOCKS)
            table.add_row(row["title"], row.get("goal", ""), *numbers, row.get("unit", ""))
        table.add_section()
    return table

"""How far a suite is: a live table on a terminal, elsewhere a line per event."""

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ltbench.bench.run import estimate, jobs
from ltbench.bench.run.jobs import State
from ltbench.bench.run.suite import Plan

MARKS = {
    "done": ("✓", "green"),
    "running": ("▶", "cyan"),
    "queued": ("…", "cyan"),
    "waiting": ("·", "dim"),
    "stopped": ("◼", "yellow"),
    "failed": ("✗", "bold red"),
    "blocked": ("=", "red"),
}


class Board:
    """The state of a plan, shown while it runs.

    With ``slots``, the number of jobs at a time, it shows the time left.
    """

    def __init__(self, plan: Plan, console: Console, slots: int = 0) -> None:
        self.plan, self.console, self.slots = plan, console, slots
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._printed: dict[str, str] = {}

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def update(self, states: Mapping[str, State]) -> None:
        """Show the states on a terminal; elsewhere, print what has changed."""
        if self.console.is_terminal:
            self._live.update(self.view(states), refresh=True)
            return
        for key, state in states.items():
            before = self._printed.get(key, "waiting")
            if state.status not in (before, "queued"):
                self._printed[key] = state.status
                job = self.plan.jobs[key]
                text = f"{state.status} {job.name} seed {job.seed}{_why(state)}"
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def view(self, states: Mapping[str, State]) -> RenderableType:
        """Lay out totals, what runs and what failed; then rows by seeds, a mark per stage.

        In that order, since a terminal hides the lower part of a live table that is too high.
        """
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        seeds = sorted({seed for of_row in self.plan.rows.values() for seed in of_row})
        for seed in seeds:
            table.add_column(f"seed {seed}")
        for row, of_row in self.plan.rows.items():
            cells = (
                Text(" ").join(Text(*MARKS[states[key].status]) for key in of_row.get(seed, ()))
                for seed in seeds
            )
            table.add_row(escape(row), *cells)
        count = Counter(state.status for state in states.values())
        totals = ", ".join(f"{count[status]} {status}" for status in jobs.STATES if count[status])
        totals = f"suite {self.plan.suite}: {totals}"
        whole = estimate.totals(self.plan, states)
        remaining = estimate.left(self.plan, states, whole)
        if self.slots and whole and remaining:
            totals += f"; ends in {duration(estimate.makespan(self.plan, remaining, self.slots))}"
        details = []
        for key, state in states.items():
            job = self.plan.jobs[key]
            if state.status in ("running", "failed", "stopped"):
                mark, style = MARKS[state.status]
                details.append(Text(f"{mark} {job.name} seed {job.seed}{_why(state)}", style=style))
        return Group(Text(totals, style="bold"), *details, table)


def _why(state: State) -> str:
    epochs = jobs.epochs(state)
    notes = state.notes or {}
    parts = [f"epoch {epochs[0]} of {epochs[1]}" if epochs and state.status != "done" else ""]
    if state.status == "done" and notes.get("seconds"):
        parts.append(duration(notes["seconds"]))
    parts.append(state.cause or "")
    text = ", ".join(part for part in parts if part)
    return f": {text}" if text else ""


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))

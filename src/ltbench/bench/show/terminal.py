"""A leaderboard on a terminal: tables narrow enough to be read there."""

import itertools
from collections.abc import Iterator, Sequence

from rich import markup
from rich.console import Group, RenderableType
from rich.table import Column
from rich.table import Table as RichTable

from ltbench.bench.score.claims import Judged
from ltbench.bench.score.effects import effects
from ltbench.bench.score.leaderboard import Leaderboard, Table
from ltbench.bench.show import tables
from ltbench.escaping import printable
from ltbench.metrics.catalogue import metric


def escape(text: str) -> str:
    """Return a text that is shown as it stands, whoever chose it."""
    return markup.escape(printable(text))


def render(board: Leaderboard, judged: Sequence[Judged], width: int = 120) -> RenderableType:
    """Lay out a leaderboard: costs and claims in tables of their own.

    The last metrics are left out if the width, in columns, is too small; of claims about rows that
    were not run, only the number is shown.
    """
    parts: list[RenderableType] = []
    for table in board.tables:
        title = f"{board.title}: {table.title}"
        parts += [_ranks(table, title, width), "", _costs(table), ""]
        for names, differs in tables.differing(table):
            verb = "differs" if len(names) == 1 else "differ"
            parts.append(escape(f"{', '.join(names)} {verb} in {'; '.join(differs)}."))
        parts += [*map(escape, tables.remarks(table)), ""]
        parts += _effects(table, judged, width)
    parts += _claims(judged)
    problems = [f"[yellow]{escape(problem)}[/]" for problem in board.problems]
    return Group(*parts, tables.LEGEND, *problems)


def _ranks(table: Table, title: str, width: int) -> RichTable:
    longest = max(len(line.name) for line in table.lines)
    names = tables.columns(table)[: max(3, (width - longest - 16) // 14)]
    shown = RichTable("rank", Column("row", no_wrap=True), "seeds", title=escape(title), box=None)
    for name in names:
        shown.add_column(escape(metric(name).title), justify="right")
    for line in table.lines:
        values = [tables.cell(name, line.estimates.get(name)) for name in names]
        shown.add_row(str(line.rank), escape(line.name), str(len(line.row.runs)), *values)
    return shown


def _costs(table: Table) -> RichTable:
    """Lay out what the rows cost; a device that all share is named below, not in each row."""
    *titles, device = tables.costs(table.lines[0])
    devices = {line.cost["device"] for line in table.lines}
    shown = RichTable(Column("row", no_wrap=True), box=None)
    for title in titles:
        shown.add_column(title, justify="right")
    if len(devices) > 1:
        shown.add_column(device)
    else:
        shown.caption = escape(f"{device}: {devices.pop()}")
    for line in table.lines:
        values = [tables.costs(line)[str(column.header)] for column in shown.columns[1:]]
        shown.add_row(*map(escape, [line.name, *values]))
    return shown


def _effects(table: Table, judged: Sequence[Judged], width: int) -> Iterator[RenderableType]:
    gains = effects(table, judged)
    if gains:
        *_, titles = rows = [*tables.effect_cells(gains), tables.effect_headings(gains)]
        widths = [max(len(row[n]) for row in rows) + 2 for n in range(len(titles))]
        fit = max(3, sum(total <= width for total in itertools.accumulate(widths)))
        shown = RichTable(title=tables.EFFECTS.lower(), box=None)
        for n, title in enumerate(titles[:fit]):
            shown.add_column(escape(title), justify="left" if n < 2 else "right", no_wrap=n < 2)
        for row in rows[:-1]:
            shown.add_row(*map(escape, row[:fit]))
        yield from (shown, "")
    if below := tables.effect_remarks(table, gains):
        yield from (*map(escape, below), "")


def _claims(judged: Sequence[Judged]) -> Iterator[RenderableType]:
    measured = [each for each in judged if each.line]
    if measured:
        shown = RichTable(*tables.CLAIM_HEADINGS, title="claimed and measured", box=None)
        shown.columns[tables.CLAIM_HEADINGS.index("status")].no_wrap = True
        why: dict[str, list[str]] = {}
        for each in measured:
            *cells, _, _ = tables.claim_cells(each)
            shown.add_row(*map(escape, [*cells, each.status, each.claim.paper]))
            for reason in each.reasons:
                why.setdefault(reason, []).append(cells[0])
        yield from (shown, "")
        for reason, names in why.items():
            rows = ", ".join(dict.fromkeys(names))
            yield escape(f"Not comparable ({rows}): {reason}.")
    if len(judged) > len(measured):
        yield f"{len(judged) - len(measured)} published numbers about this data: not run."
    yield ""

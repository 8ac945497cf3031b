"""``ltbench leaderboard``: tables and report of a suite, or of a folder of runs."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from threadpoolctl import threadpool_limits

from ltbench import records
from ltbench.bench.run.command import FOLDER
from ltbench.bench.run.jobs import Store
from ltbench.bench.score import claims, leaderboard, results
from ltbench.bench.score.claims import Judged
from ltbench.bench.score.leaderboard import Leaderboard
from ltbench.bench.show import tables, terminal
from ltbench.errors import UserError
from ltbench.runs.arguments import Arguments

FORMATS = ("rich", "md", "csv", "json", "html")


def leaderboard_command(args: Sequence[str]) -> None:
    """Compute a leaderboard from records, and print or write it."""
    parser = Arguments("ltbench leaderboard", "Compute tables from run records.")
    parser.add_argument("suite", help="name of a suite that was run, or a folder of runs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: the ending of --output, or rich"
    )
    parser.add_argument("--output", type=Path, help="file to write; default: the terminal")
    parser.add_argument("--by", help="metric to rank by; default: accuracy")
    parser.add_argument("--selection", choices=("last", "best"), default="last")
    parser.add_argument("--claims", type=Path, help="default: benchmarks/claims.yaml")
    given = parser.parse_args(args)
    form = given.format or _form_of(given.output)
    if given.output is not None:
        records.require_place(given.output)
    published = claims.read(given.claims)
    if Path(given.suite).is_dir():
        found = results.of_folder(Path(given.suite), given.selection)
    else:
        store = Store(given.folder)
        found = results.of_plan(store.load(Path(given.suite).stem), store, given.selection)
    with threadpool_limits(1):  # of many small products: threads would wait for each other
        board = leaderboard.build(found, given.by)
    judged = claims.judge(published, board)
    if given.output is None and form == "rich":
        console = Console()
        console.print(terminal.render(board, judged, console.width), highlight=False)
    elif given.output is None:
        print(_text(form, board, judged), end="")
    else:
        records.write_text(given.output, _text(form, board, judged))
        print(f"{form}: {given.output}")


def _form_of(output: Path | None) -> str:
    if output is None:
        return "rich"
    form = {"txt": "rich"}.get(output.suffix[1:], output.suffix[1:])
    if form not in FORMATS:
        raise UserError(f"--output {output}: its ending is none of txt, {', '.join(FORMATS[1:])}.")
    return form


def _text(form: str, board: Leaderboard, judged: Sequence[Judged]) -> str:
    if form == "html":
        from ltbench.bench.show import report  # jinja2 is not needed otherwise

        return report.html(board, judged)
    if form == "rich":
        console = Console(file=io.StringIO(), width=160)
        with console.capture() as capture:
            console.print(terminal.render(board, judged, console.width), highlight=False)
        return capture.get()
    if form == "csv":
        return tables.as_csv(board)
    return {"md": tables.markdown, "json": tables.as_json}[form](board, judged)

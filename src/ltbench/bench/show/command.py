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
        "--format", choices=FORMATS, help="default: by the ending of --output, or rich"
    )
    parser.add_argument("--output", type=Path, help="file to write; default: the terminal")
    parser.add_argument("--by", help="metric to rank by; default: accuracy")
    parser.add_argument("--selection", choices=("last", "best"), default="last")
    parser.add_argument("--claims", type=Path, help="default: benchmarks/claims.yaml")
    options = parser.parse_args(args)
    form = options.format or _form_of(options.output)
    if options.output is not None:
        records.require_place(options.output)
    published = claims.read(options.claims)
    if Path(options.suite).is_dir():
        scored = results.of_folder(Path(options.suite), options.selection)
    else:
        store = Store(options.folder)
        scored = results.of_plan(store.load(Path(options.suite).stem), store, options.selection)
    with threadpool_limits(1):  # of many small products: threads would wait for each other
        board = leaderboard.build(scored, options.by)
    judged = claims.judge(published, board)
    if options.output is None and form == "rich":
        console = Console()
        console.print(terminal.render(board, judged, console.width), highlight=False)
    elif options.output is None:
        print(_text(form, board, judged), end="")
    else:
        records.write_text(options.output, _text(form, board, judged))
        print(f"{form}: {options.output}")


def _form_of(output: Path | None) -> str:
    if output is None:
        return "rich"
    form = {"txt": "rich"}.get(output.suffix[1:], output.suffix[1:])
    if form not in FORMATS:
        raise UserError(f"--output {output}: end it in .txt, .{', .'.join(FORMATS[1:])}.")
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

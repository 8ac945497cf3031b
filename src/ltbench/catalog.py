"""``ltbench list`` and ``ltbench show``: read from the source files, without torch."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltbench.data.sources import DESCRIPTIONS
from ltbench.errors import UserError, unknown_name
from ltbench.runs.arguments import Arguments
from ltbench.shipped import config_file, folder

KINDS = ("methods", "datasets", "configs", "suites")


def methods() -> dict[str, str]:
    """Return method name -> first line of its file, for each method of ``ltbench.methods``."""
    lines = {}
    for name, path in _method_files().items():
        tree = ast.parse(path.read_text())
        if _card(tree):  # a file without a card is a base of methods
            lines[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return lines


def configs() -> dict[str, str]:
    """Return config name -> its leading comment, for the configs at hand."""
    return {path.stem: _comment(path) for path in sorted(folder("configs").glob("*.yaml"))}


def suites() -> dict[str, str]:
    """Return suite name -> its leading comment, for the suites at hand."""
    paths = sorted(folder("benchmarks").glob("*.yaml"))
    return {path.stem: _comment(path) for path in paths if path.stem != "claims"}


def paper(method: str) -> dict[str, Any]:
    """Return the ``Paper`` card that a method's class declares, as plain data.

    The card is read from the source, where it is a literal, so nothing is imported.

    Args:
        method: A key of :func:`methods`.
    """
    tree = ast.parse(_method_files()[method].read_text())
    card = _card(tree)
    if card is None:
        raise UserError(f"method '{method}' declares no Paper card.")
    values = {k.arg: k.value for k in card.keywords if k.arg}
    texts = values.pop("deviations", None)  # their conditions are functions, and stay unread
    found = {name: ast.literal_eval(value) for name, value in values.items()}
    keys = texts.keys if isinstance(texts, ast.Dict) else []
    return {**found, "deviations": [ast.literal_eval(key) for key in keys if key]}


def classes(method: str) -> set[str]:
    """Return the names of the classes in a method's file, read from the source."""
    tree = ast.parse(_method_files()[method].read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _card(tree: ast.AST) -> ast.Call | None:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return next((call for call in calls if getattr(call.func, "id", "") == "Paper"), None)


def list_command(args: Sequence[str]) -> None:
    """List methods, data sets, configs and suites, or one of these kinds."""
    parser = Arguments("ltbench list")
    parser.add_argument("kind", nargs="?", help="|".join(KINDS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    if options.kind and options.kind not in KINDS:
        raise unknown_name("kind", options.kind, KINDS)
    sections = {kind: _SECTIONS[kind]() for kind in ([options.kind] if options.kind else KINDS)}
    if options.json:
        print(json.dumps(sections[options.kind] if options.kind else sections, indent=1))
        return
    for kind, rows in sections.items():
        _print_rows(kind, rows)


def show_command(args: Sequence[str]) -> None:
    """Print one method's card, one data set or one config."""
    parser = Arguments("ltbench show")
    parser.add_argument("name")
    name = parser.parse_args(args).name
    if name in methods():
        _show_method(name)
    elif name in DESCRIPTIONS:
        Console().print(f"[bold]{name}[/]  {escape(DESCRIPTIONS[name])}", highlight=False)
    else:
        path = config_file(name)
        if not path.is_file():
            raise unknown_name("name", name, [*methods(), *DESCRIPTIONS, *configs()])
        try:
            print(path.read_text(), end="")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a text file: {error}.") from error


def _show_method(name: str) -> None:
    console, card = Console(highlight=False), paper(name)
    console.print(f"[bold]{name}[/]  {escape(methods()[name])}")
    console.print(f"{escape(card['title'])}, {card['venue']}, arXiv {card['arxiv']}\n")
    _print_rows("equations", card.get("equations", {}))
    for deviation in card.get("deviations", ()):
        console.print(f"differs: {escape(deviation)}")
    users = [c for c in configs() if _uses(folder("configs") / f"{c}.yaml", name)]
    console.print(f"\nconfigs: {', '.join(users) or 'none'}")


def _uses(config: Path, method: str) -> bool:
    return any(f"class_path: {name}\n" in config.read_text() for name in classes(method))


def _print_rows(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, text in rows.items():
        table.add_row(escape(name), escape(text))
    Console().print(table)


def _method_files() -> dict[str, Path]:
    """Return method name -> its file; the name is that of the file, or of its folder."""
    place = Path(__file__).parent / "methods"
    files = {path.stem: path for path in place.glob("*.py")}
    folders = {path.parent.name: path for path in place.glob("*/method.py")}
    return dict(sorted((files | folders).items()))


def _comment(path: Path) -> str:
    first = path.read_text(errors="replace").splitlines()[:1]
    return first[0].removeprefix("#").strip() if first else ""


_SECTIONS = {
    "methods": methods,
    "datasets": lambda: dict(DESCRIPTIONS),
    "configs": configs,
    "suites": suites,
}

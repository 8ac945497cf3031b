"""``ltbench analyze``: its command line comes from the signatures of the analyses.

An analysis is a file of this folder with a function ``analyse``. The first line of the file says
what it does. The function's first parameter is what is analysed: a ``Subject``, or ``Predictions``
followed by their ``Classes``. Those with a default, ``split`` among them, are its options, and its
docstring has their help. All is read from the source: only running an analysis imports torch.
"""

import argparse
import ast
import re
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.errors import UserError, unknown_name
from ltbench.runs.arguments import Arguments, whole_number

if TYPE_CHECKING:
    from ltbench.analysis.result import Output, Result

_TYPES: dict[str, dict[str, Any]] = {
    "str": {},
    "int": {"type": whole_number},
    "float": {"type": float},
    "Path": {"type": Path},
    "bool": {"action": "store_true"},
    "Sequence[str]": {"nargs": "+"},
    "Others": {"nargs": "+", "type": Path, "metavar": "RUN", "default": ()},
}
"""Type of a parameter -> what argparse needs to know of the option."""


class Analysis:
    """The declaration of an analysis, read from its source file."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        tree = ast.parse(path.read_text())
        (self.function,) = (
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "analyse"
        )
        self.description = (ast.get_docstring(tree) or "").partition("\n")[0]

    @property
    def of_predictions(self) -> bool:
        """Whether it takes predictions rather than the network."""
        return _annotation(self.function.args.args[0]) == "Predictions"

    @cached_property
    def options(self) -> dict[str, dict[str, Any]]:
        """Its options: name -> arguments of ``add_argument``."""
        _, _, texts = (ast.get_docstring(self.function) or "").partition("Args:\n")
        described = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", texts, re.MULTILINE))
        defaults = self.function.args.defaults
        arguments = self.function.args.args[-len(defaults) :]
        options = {}
        for argument, default in zip(arguments, defaults, strict=True):
            kind = _annotation(argument).removesuffix(" | None")
            if kind.startswith("Literal["):
                option = {"choices": ast.literal_eval(kind.removeprefix("Literal"))}
            else:
                option = dict(_TYPES[kind])
            if "default" not in option:
                option["default"] = ast.literal_eval(default)
            text = " ".join(described[argument.arg].split()).rstrip(".").replace("``", "")
            shown = option["default"] not in (None, False, ())
            text = f"{text}; default: {option['default']}" if shown else text
            option["help"] = text.replace("%", "%%")
            options[argument.arg] = option
        return options

    @property
    def usual_split(self) -> str:
        """The default of its split."""
        return str(self.options["split"]["default"])


def _annotation(argument: ast.arg) -> str:
    return ast.unparse(argument.annotation) if argument.annotation else ""


def analyses() -> dict[str, Path]:
    """Return the file of each analysis, by name."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {path.stem: path for path in files if "\ndef analyse(" in path.read_text()}


def analyze_command(args: Sequence[str]) -> None:
    """Dispatch ``ltbench analyze ANALYSIS ...``.

    Raises:
        UserError: An unknown analysis or option, or the analysis cannot be done.
    """
    files = analyses()
    if not args or args[0] in ("-h", "--help"):
        lines = "\n".join(f"  {n:12} {Analysis(path).description}" for n, path in files.items())
        print(f"usage: ltbench analyze ANALYSIS ...   (each has --help)\n\n{lines}")
        return
    name, *rest = args
    if name not in files:
        raise unknown_name("analysis", name, files)
    analysis = Analysis(files[name])
    parser = _parser(analysis)
    arguments, overrides = parser.parse_known_args(rest)
    for word in overrides:
        if word.startswith("--") and not word.startswith("--data"):
            valid = [o for action in parser._actions for o in action.option_strings]
            raise unknown_name("option", word, [*valid, "--data..."])
    options = vars(arguments)
    place = {name: options.pop(name) for name in ("run", "ckpt_path", "selection", "config")}
    _run(analysis, place, overrides, options)


def _parser(analysis: Analysis) -> argparse.ArgumentParser:
    parser = Arguments(
        f"ltbench analyze {analysis.name}",
        description=analysis.description,
        epilog="--data... overrides the run's data settings, as for ltbench fit.",
    )
    add = parser.add_argument
    add("--run", type=Path, help="run folder, with its config and checkpoint")
    add("--ckpt_path", type=Path, help="a checkpoint, in place of a run folder")
    add(
        "--selection",
        choices=("last", "best"),
        default="last",
        help="which weights of a run folder",
    )
    add("--config", type=Path, help="default: config.yaml of the run folder")
    add("--output", type=Path, help="folder of the results; default: analysis/ in the run folder")
    add("--device", help="such as cpu or cuda:1; default: the first GPU, else the CPU")
    for name, option in analysis.options.items():
        add(f"--{name}", **option)
    return parser


def _run(
    analysis: Analysis, where: dict[str, Any], overrides: list[str], options: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ltbench import records
    from ltbench.analysis.result import Output, Place

    place = Place.of(**where, output=options.pop("output"))
    device = options.pop("device")
    settings = {**options, "overrides": overrides}
    output = Output(place, analysis.name, settings, analysis.usual_split)
    records.require_place(output.path)
    if "beside" in options:  # refused now, not after an hour
        options["beside"] = output.others(options["beside"])
    take = _of_predictions if analysis.of_predictions else _of_network
    result = take(output, overrides, device, options)
    output.save(result)
    table = Table("", "", title=escape(result.title), show_header=False)
    for label, value in result.summary:
        table.add_row(escape(label), escape(value))
    console = Console()
    console.print(table)
    console.print(f"Result: {output.path}", highlight=False, soft_wrap=True)


def _of_network(
    output: "Output", overrides: list[str], device: str | None, options: dict[str, Any]
) -> "Result":
    import torch

    from ltbench.analysis.subject import load

    with torch.compiler.set_stance("force_eager"):  # compiled code has no second derivative
        subject = load(output, overrides, device)
        return _module(output).analyse(subject, **options)  # type: ignore[no-any-return]


def _of_predictions(
    output: "Output", overrides: list[str], device: str | None, options: dict[str, Any]
) -> "Result":
    """Analyse the recorded predictions; predict now if there are none, or for other data."""
    from ltbench.metrics.counts import Classes
    from ltbench.records import RunFolder

    place, split, predictions = output.place, options["split"], None
    run, weights = RunFolder(place.folder), place.checkpoint.stem
    if not overrides and run.predictions(weights, split).is_file() and run.record.is_file():
        record = run.read()
        predictions = run.read_predictions(record, weights, split, logits=False)
        if predictions and predictions.confidence is None:
            path = run.predictions(weights, split)
            raise UserError(f"{path} is damaged: it has no column 'confidence'.")
        classes = Classes.of(record["data"])
    if predictions is None:
        from ltbench.analysis.subject import load, predict

        subject = load(output, overrides, device)
        predictions, classes = predict(subject, split), subject.classes
    return _module(output).analyse(predictions, classes, **options)  # type: ignore[no-any-return]


def _module(output: "Output") -> Any:  # noqa: ANN401 - a module
    return import_module(f"ltbench.analysis.{output.analysis}")

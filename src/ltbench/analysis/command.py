"""``ltbench analyze``: the command line of the analyses; torch waits until one of them runs."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.errors import unknown_name
from ltbench.runs.arguments import Arguments, whole_number

if TYPE_CHECKING:
    from ltbench.analysis.result import Output, Result

ANALYSES = {
    "hessian": "curvature of the loss of each class: spectrum, extreme eigenvalues, trace",
    "landscape": "the loss of a head and a tail class around the weights, in two directions",
    "features": "norms, spread and neural collapse of features and classifier, by class",
    "calibration": "whether confidence is earned, by group of classes",
    "confusion": "where the tail goes: which classes swallow it",
    "attention": "mean attention distance by head, rollout onto images (vision transformers)",
    "rank": "feature rank of the class tokens by block (vision transformers)",
    "agreement": "student against teacher, on clean and on mixed images (DeiT-LT)",
}
_OF_PREDICTIONS = ("calibration", "confusion")
_OF_TRAINING_IMAGES = ("hessian", "landscape", "features", "agreement")


def analyze_command(args: Sequence[str]) -> None:
    """Dispatch ``ltbench analyze ANALYSIS ...``.

    Raises:
        UserError: An unknown analysis or option, or what the analysis itself refuses.
    """
    if not args or args[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:12} {text}" for name, text in ANALYSES.items())
        print(f"usage: ltbench analyze ANALYSIS ...   (each has --help)\n\n{lines}")
        return
    analysis, *rest = args
    if analysis not in ANALYSES:
        raise unknown_name("analysis", analysis, ANALYSES)
    parser = _parser(analysis)
    given, overrides = parser.parse_known_args(rest)
    for word in overrides:
        if word.startswith("--") and not word.startswith("--data"):
            valid = [o for action in parser._actions for o in action.option_strings]
            raise unknown_name("option", word, [*valid, "--data..."])
    options = vars(given)
    place = {name: options.pop(name) for name in ("run", "ckpt_path", "selection", "config")}
    _run(analysis, place, overrides, options)


def _run(
    analysis: str, where: dict[str, Any], overrides: list[str], options: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ltbench import records
    from ltbench.analysis.result import Output, Place

    place = Place.of(**where, output=options.pop("output"))
    device = options.pop("device")
    settings = {**options, "overrides": overrides}
    output = Output(place, analysis, settings, _usual_split(analysis))
    records.require_place(output.path)
    if "beside" in options:  # refused now, not after an hour
        options["beside"] = output.others(options["beside"])
    take = _of_predictions if analysis in _OF_PREDICTIONS else _of_network
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
    """Analyse what the run recorded; with other data or without a record, predict now."""
    from ltbench.metrics.counts import Classes
    from ltbench.records import RunFolder

    place, split, predictions = output.place, options["split"], None
    run, weights = RunFolder(place.folder), place.checkpoint.stem
    if not overrides and run.predictions(weights, split).is_file() and run.record.is_file():
        record = run.read()
        predictions = run.read_predictions(record, weights, split, logits=False)
        classes = Classes.of(record["data"])
    if predictions is None:
        from ltbench.analysis.subject import load, predict

        subject = load(output, overrides, device)
        predictions, classes = predict(subject, split), subject.classes
    return _module(output).analyse(predictions, classes, **options)  # type: ignore[no-any-return]


def _module(output: "Output") -> Any:  # noqa: ANN401 - a module
    return import_module(f"ltbench.analysis.{output.analysis}")


def _usual_split(analysis: str) -> str:
    return "train" if analysis in _OF_TRAINING_IMAGES else "test"


def _parser(analysis: str) -> argparse.ArgumentParser:
    parser = Arguments(
        f"ltbench analyze {analysis}",
        description=f"{ANALYSES[analysis].capitalize()}.",
        epilog="--data... overrides the run's data settings, as for ltbench fit.",
    )
    add = parser.add_argument
    add("--run", type=Path, help="run folder; its config and checkpoint are taken")
    add("--ckpt_path", type=Path, help="a checkpoint, in place of a run folder")
    add("--selection", choices=("last", "best"), default="last", help="of a run folder's weights")
    add("--config", type=Path, help="default: config.yaml of the run folder")
    add("--output", type=Path, help="folder of the results; default: analysis/ in the run folder")
    add("--device", help="such as cpu or cuda:1; default: the first GPU, else the CPU")
    split = _usual_split(analysis)
    add("--split", default=split, help=f"whose images; default: {split}")
    _own_options(analysis, add)
    return parser


def _own_options(analysis: str, add: Any) -> None:  # noqa: ANN401 - add_argument
    if analysis in ("hessian", "landscape"):
        add("--classes", nargs="+", default=(), metavar="CLASS", help="names or numbers")
        add("--loss", choices=("ce", "run"), default="ce", help="plain cross-entropy, or the run's")
        add("--beside", nargs="+", type=Path, default=(), metavar="RUN", help=_BESIDE)
    if analysis == "hessian":
        add("--steps", type=whole_number, default=100, help="Lanczos steps; default: 100")
        add("--runs", type=whole_number, default=5, help="random starts; default: 5")
        add("--fresh", action="store_true", help="forget what an earlier call left")
    if analysis == "landscape":
        add("--steps", type=whole_number, default=30, help="Lanczos steps; default: 30")
        add("--second", choices=("random", "bottom"), default="random", help="other direction")
        add("--radius", type=float, default=1.0, help="how far, in the norm of all parameters")
        add("--points", type=whole_number, default=15, help="of the grid, a side; odd; default: 15")
    if analysis == "attention":
        add("--pictures", type=Path, help="folder of images for the rollout")
    if analysis == "rank":
        add("--threshold", type=float, default=0.99, help="share of the energy; default: 0.99")
        add("--centre", action="store_true", help="take the mean feature off first")
    if analysis == "calibration":
        add("--bins", type=whole_number, default=15, help="default: 15")
    if analysis in _IMAGES:
        add("--images", type=whole_number, default=_IMAGES[analysis], help=_images_help(analysis))
    if analysis in _BATCH:
        size = _BATCH[analysis]
        add("--batch_size", type=whole_number, default=size, help=f"a pass; default: {size}")


_IMAGES = {"hessian": 200, "landscape": 200, "attention": 256, "rank": 2000, "agreement": 5000}
_BATCH = {
    "hessian": 64, "landscape": 64, "features": 256, "attention": 32, "rank": 64, "agreement": 128
}  # fmt: skip
_BESIDE = "run folders, or JSON files of this analysis, to compare with"


def _images_help(analysis: str) -> str:
    whose = " of a class" if analysis in ("hessian", "landscape") else ""
    return f"at most so many{whose}, drawn by the run's seed; default: {_IMAGES[analysis]}"

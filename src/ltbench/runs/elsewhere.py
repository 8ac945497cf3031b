"""A finished run on other images: ``ltbench predict --run`` and ``ltbench test --run``.

Neither needs the images that the run was trained on: size, normalisation, decoding and class names
are the checkpoint's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ltbench import records
from ltbench.data.sources.folder import class_folders, image_files
from ltbench.errors import UserError
from ltbench.methods.classification import prediction_table
from ltbench.metrics.collector import LongTailMetrics
from ltbench.metrics.counts import Classes
from ltbench.runs.arguments import Arguments
from ltbench.runs.finished import FinishedRun, open_run
from ltbench.runs.result_table import result_table


def _parser(command: str, description: str) -> Arguments:
    parser = Arguments(f"ltbench {command} --run", description)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of the finished run")
    add("--selection", choices=("last", "best"), default="last", help="which weights")
    add("--device", help="such as cpu or cuda:1; default: the first GPU, else the CPU")
    return parser


def predict_command(args: Sequence[str]) -> None:
    """Run ``ltbench predict --run``: classify files and folders, and write a CSV.

    Raises:
        UserError: There is no such run, or an image cannot be used.
    """
    parser = _parser("predict", "Classify images with a finished run.")
    add = parser.add_argument
    add("--images", type=Path, nargs="+", required=True, help="files and folders of images")
    add("--output", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    options = parser.parse_args(args)
    records.require_place(options.output)
    run = open_run(options.run, options.selection, options.device)
    result = run.predict(options.images)
    scores = torch.from_numpy(result.probabilities)
    table = prediction_table(result.images, scores, run.class_names)
    records.write_whole(
        options.output, lambda file: table.to_csv(file, index=False, errors="surrogateescape")
    )
    print(f"{len(table)} images classified: {options.output}")


def test_command(args: Sequence[str]) -> None:
    """Run ``ltbench test --run``: measure a run on another labelled set.

    Raises:
        UserError: There is no such run, or the set has classes that the run does not know.
    """
    parser = _parser("test", "Test a finished run on a folder of labelled images.")
    add = parser.add_argument
    add("--data.root", dest="root", type=Path, required=True, help="with [test/]<class>/<image>")
    add("--output", type=Path, help="JSON file for the metrics")
    options = parser.parse_args(args)
    if options.output:
        records.require_place(options.output)
    run = open_run(options.run, options.selection, options.device)
    run.require_images()
    root: Path = options.root
    folder = root / "test" if (root / "test").is_dir() else root
    images, labels = labelled_images(folder, run.class_names)
    metrics = measure(run, images, labels)
    shown = {
        **run.record,
        "metrics": {run.selection: {"test": metrics}},
        "data": {**run.record["data"], "source": str(folder)},
    }
    Console().print(result_table(shown))
    if options.output:
        records.write_json(options.output, metrics)


def labelled_images(
    folder: Path, class_names: Sequence[str]
) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the images of a folder with one subfolder per class, and their labels (N,).

    Classes are matched by name; the folder may lack some of them.

    Raises:
        UserError: There are no images, or a subfolder is none of the classes.
    """
    classes = class_folders(folder) if folder.is_dir() else []
    if not classes:
        raise UserError(f"no class folders found in {folder}: expected {folder}/<class>/<image>.")
    if unknown := sorted(set(classes) - set(class_names)):
        raise UserError(
            f"{folder} has {len(unknown)} class folders that the run was not trained on, such as "
            f"'{unknown[0]}'. Its classes: {', '.join(class_names)[:200]}."
        )
    images, labels = [], []
    for name in classes:
        files = image_files(folder / name)
        images += files
        labels += [class_names.index(name)] * len(files)
    return images, np.array(labels)


def measure(run: FinishedRun, images: list[Path], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return every metric of a run's predictions on labelled images, by name."""
    classes = Classes.of(run.record["data"])
    collector = LongTailMetrics(
        len(classes), torch.from_numpy(classes.counts), head_mid_tail=classes.head_mid_tail
    )
    probabilities = torch.from_numpy(run.predict(images).probabilities)
    collector.update(probabilities.clamp_min(1e-38).log(), torch.from_numpy(labels))
    recalls = collector.per_class_recall().tolist()
    values = {name: float(value) for name, value in collector.compute().items()}
    return {**values, "per_class_recall": recalls}

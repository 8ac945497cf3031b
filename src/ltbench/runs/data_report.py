"""``ltbench data``: how long the tail is, before anything is trained on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltbench import records
from ltbench.data.base import DataModule
from ltbench.errors import UserError
from ltbench.metrics.counts import index_groups, shot_groups
from ltbench.runs.experiment import build
from ltbench.runs.notices import quiet

ROWS = 20
NAMED = 20  # classes that the plot has room to name
FORMATS = FigureCanvasBase.filetypes  # extensions that matplotlib can write


def data_command(words: Sequence[str]) -> None:
    """Run ``ltbench data`` with arguments of ``fit``."""
    with quiet():
        experiment = build(None, words, "data")
        output = experiment.options.output or f"{experiment.config['name']}_classes.png"
        report(experiment.data, Path(output))


def report(data: DataModule, output: Path) -> None:
    """Print counts, imbalance, groups and the index hash, and plot the class histogram.

    Args:
        data: The data to describe.
        output: File of the plot; its extension gives the format.

    Raises:
        UserError: The file cannot be written, or has another extension.
    """
    records.require_place(output)
    if output.suffix[1:] not in FORMATS:
        raise UserError(f"--output {output}: use one of .{', .'.join(sorted(FORMATS))}.")
    data.setup()
    facts, counts = data.describe(), data.class_counts
    groups = {
        "by images (many > 100 >= medium >= 20 > few)": shot_groups(counts),
        "by index (the papers' head, mid, tail)": index_groups(counts, data.head_mid_tail),
    }
    group_of = [
        {label: name for name, labels in group.items() for label in labels.tolist()}
        for group in groups.values()
    ]
    table = Table(title=f"{facts['source']}, {facts['profile']}")
    for heading in ("class", "name", "training images", "by images", "by index"):
        table.add_column(heading, justify="right" if heading == "training images" else "left")
    order = np.argsort(-counts, kind="stable").tolist()
    shown = order if len(order) <= 2 * ROWS else [*order[:ROWS], None, *order[-ROWS:]]
    for c in shown:
        if c is None:
            table.add_section()
            continue
        names = (group[c] for group in group_of)
        table.add_row(str(c), escape(facts["class_names"][c]), str(counts[c]), *names)
    console = Console()
    console.print(table)
    for name, images in facts["images"].items():
        console.print(f"{name}: {images} images")
    console.print(f"imbalance factor (largest / smallest): {facts['imbalance_factor']:g}")
    for title, group in groups.items():
        sizes = ", ".join(f"{len(labels)} {name}" for name, labels in group.items())
        console.print(f"classes {title}: {sizes}")
    console.print(f"index hash: {facts['index_hash']}")
    records.write_whole(
        output, lambda file: _histogram(data).savefig(file, format=output.suffix[1:])
    )
    console.print(f"histogram: {output}")


def _histogram(data: DataModule) -> Figure:
    order = np.argsort(-data.class_counts, kind="stable")
    counts = data.class_counts[order]
    figure = Figure(figsize=(6, 3.5), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    for name, ranks in shot_groups(counts).items():
        if len(ranks):
            width = 1 if len(counts) > NAMED else 0.8
            bars = axes.bar(ranks + 1, counts[ranks], width, label=f"{name}: {len(ranks)}")
            if len(counts) <= NAMED:
                axes.bar_label(bars, fontsize=8)
    if len(counts) <= NAMED:
        names = [_drawn(data.source.class_names[c], str(c)) for c in order]
        axes.set_xticks(np.arange(len(names)) + 1, names, rotation=30, ha="right", parse_math=False)
    axes.set(yscale="log", xlabel="class, by decreasing count", ylabel="training images")
    axes.set_ylim(0.6 * max(counts[-1], 1), 1.6 * counts[0])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(title="classes by images", frameon=False)
    name = _drawn(data.source.display_name, data.source_name)
    title = f"{name}: {counts.sum()} images, {len(counts)} classes"
    axes.set_title(title, parse_math=False)
    return figure


def _drawn(name: str, otherwise: str) -> str:
    """Return a name, shortened, if matplotlib's font has all its letters."""
    font = get_font(findfont(FontProperties()))
    return f"{name:.20}" if all(font.get_char_index(ord(letter)) for letter in name) else otherwise

"""Names that somebody chose are shown, written and drawn as they stand."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
import torch
from made_predictions import predictions
from matplotlib.figure import Figure

from ltbench.analysis import confusion, landscape, spectra
from ltbench.escaping import cell, cells, drawn, printable
from ltbench.methods.classification import prediction_table
from ltbench.methods.generative.samples import Grid
from ltbench.runs.callbacks.trace_figure import trace_figure

FORMULAS = ["=1+1", "+cmd|x", "-2+3", "@SUM(1)", "\t=1", "\r=1", "=HYPERLINK(1)", "\uff1d1+1"]
NAMES = ["US$_$", "$\\frac{$", "_ant", "$$", "a\\$b$", "^{$_", "%", "{}$ $", "bee", "\\"]


@pytest.mark.parametrize("text", ["\x1b[2J", "\u202eevil", "a\rb", "\x07", "\x9b31m", "\udce4"])
def test_a_terminal_obeys_no_name(text):
    assert printable(text).isprintable()
    assert printable("Ä b\nc") == "Ä b\nc"


def test_a_spreadsheet_runs_no_name_and_names_can_be_read_back():
    texts = [*FORMULAS, "'=1", "'", "", "bee", "a=1", "1-2"]
    assert all(cell(text)[0] == "'" for text in FORMULAS)
    assert [cell(text).removeprefix("'") for text in texts] == texts
    assert all(cell(text) == text for text in ("-1", "+2.5e-3", "-.5", "bee"))


def test_numbers_of_a_table_stay_numbers():
    table = pd.DataFrame({"name": ["=1", "bee"], "share": np.array([-0.1, 0.2], np.float32)})
    table["count"] = [-1, 2]
    same = cells(table)
    assert same[["share", "count"]].equals(table[["share", "count"]])
    assert same["name"].tolist() == ["'=1", "bee"]


def test_predictions_and_paths_are_neutralised():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    table = cells(prediction_table(["-x.png", "y.png"], scores, ["=1+1", "bee"]))
    rows = list(csv.reader(io.StringIO(table.to_csv(index=False))))
    assert rows[1][:2] == ["'-x.png", "'=1+1"]
    assert rows[2][1] == "bee"
    assert float(rows[1][2]) == pytest.approx(0.9)


def shown(figure):
    """Draw a figure; return its texts as matplotlib understands them."""
    figure.savefig(io.BytesIO(), format="png")
    texts = figure.findobj(lambda artist: hasattr(artist, "_preprocess_math"))
    return {text._preprocess_math(text.get_text()) for text in texts}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_stands(name):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=drawn(name))
    axes.legend()
    axes.set_title(drawn(name))
    expected = ("\u200b" if name[0] == "_" else "") + name
    assert (expected, False) in shown(figure)
    assert len(axes.get_legend().get_texts()) == 1


def entry(name):
    axis = [-1.0, 0.0, 1.0]
    return {"axis": axis, "loss": np.ones((3, 3)).tolist(), "lambda_first": 1.0} | {
        "lambda_second": 0.5,
        "train_images": 3,
        "name": name,
        "group": "tail",
        "lambda_min": -1.0,
        "lambda_max": 2.0,
        "ratio": 0.5,
        "test_recall": None,
        "runs": {"0": {"nodes": [-1.0, 2.0], "weights": [0.5, 0.5]}},
    }


def test_every_figure_draws_names_of_classes_and_runs_as_they_stand():
    made, classes = predictions()[:2]
    classes = type(classes)(NAMES, classes.counts)
    epochs = np.array([0, 1])
    traces = {"share": np.ones((2, 10)), "share.epoch": epochs} | {
        "pairs": np.ones((2, 10, 10)),
        "pairs.epoch": epochs,
    }
    grid = Grid(NAMES)
    grid.add(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
    assert grid.png(np.ones(10))
    runs = {run: {name: entry(name) for name in NAMES[:3]} for run in ("$_$", "_run")}
    entries = {run: list(of.values()) for run, of in runs.items()}
    figures = [
        *confusion.analyse(made, classes).figures.values(),
        trace_figure(traces, NAMES),
        landscape.maps(runs, "random"),
        landscape.cuts(runs, "random"),
        spectra.picture(entries),
        spectra.ratios(entries),
        spectra.by_class(next(iter(entries.values()))),
    ]
    for figure in figures:
        texts = shown(figure)
        assert not any(math for text, math in texts if "_$" in text or "frac" in text)

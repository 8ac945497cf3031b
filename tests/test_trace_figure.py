"""The picture of traces: a panel a name, a line a class."""

import io

import numpy as np

from ltbench.trace_figure import trace_figure


def panels(traces, names=("a", "b", "c")):
    figure = trace_figure(traces, names)
    figure.savefig(io.BytesIO(), format="png")
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_a_panel_a_name_and_a_line_a_class():
    epochs = np.array([1, 4, 5])
    share = np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 0.5], [0.5, 0.6, 0.7]])
    gains = np.array([[0.1, 10, 900]] * 3)
    found = panels(
        {"kept_share": share, "kept_share.epoch": epochs, "gain": gains, "gain.epoch": epochs}
    )
    assert found.keys() == {"kept share", "gain"}
    lines = found["kept share"].lines
    assert [line.get_label() for line in lines] == ["a", "b", "c"]
    for line, column in zip(lines, share.T, strict=True):
        assert np.array_equal(line.get_xdata(), epochs)
        assert np.array_equal(line.get_ydata(), column, equal_nan=True)
    assert found["kept share"].get_yscale() == "linear"
    assert found["gain"].get_yscale() == "log"


def test_other_shapes():
    epochs = np.array([3])
    found = panels(
        {
            "pairs": np.eye(4)[None],
            "pairs.epoch": epochs,
            "entropy": np.array([0.5]),
            "entropy.epoch": epochs,
            "two": np.ones((1, 2)),
            "two.epoch": epochs,
            "many": np.ones((1, 50)),
            "many.epoch": epochs,
        },
        [str(c) for c in range(50)],
    )
    assert len(found["pairs"].images) == 1
    assert len(found["entropy"].lines) == 1
    assert len(found["two"].lines) == 2
    assert len(found["many"].lines) == 50
    assert found["many"].get_legend() is None

"""The picture of traces: by class and epoch a heat map, and so on."""

import io

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from ltbench.runs.callbacks.trace_figure import trace_figure


def panels(traces, names=("a", "b", "c")):
    figure = trace_figure(traces, names)
    figure.savefig(io.BytesIO(), format="png")
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_values_of_classes_are_heat_maps_by_epoch():
    epochs = np.array([1, 4, 5])
    share = np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 0.5], [0.5, 0.6, 0.7]])
    gains = np.array([[0.1, 10, 900]] * 3)
    found = panels(
        {"kept_share": share, "kept_share.epoch": epochs, "gain": gains, "gain.epoch": epochs}
    )
    assert found.keys() == {"kept share", "gain"}
    (drawn,) = found["kept share"].collections
    cells = drawn.get_array()
    assert np.array_equal(cells.filled(np.nan), share.T, equal_nan=True)
    assert (drawn.norm.vmin, drawn.norm.vmax) == (0, 0.7)
    assert labels(found["kept share"].yaxis) == ["a", "b", "c"]
    assert found["kept share"].get_ylim() == (2.5, -0.5)  # the first class on top
    assert found["kept share"].get_xlim() == (0.5, 5.5)
    assert isinstance(found["gain"].collections[0].norm, LogNorm)
    penalties = np.array([[0, 1e-12, 90], [np.nan] * 3, [0, 40, 80]])
    found = panels({"penalty": penalties, "penalty.epoch": epochs})
    norm = found["penalty"].collections[0].norm
    assert (type(norm), norm.vmin, norm.vmax) == (Normalize, 0, 90)


def test_a_matrix_is_shown_at_some_epochs_on_one_scale():
    shares = np.zeros((9, 3, 3))
    shares[0, 0, 1], shares[8, 2, 0], shares[4, 1, 1] = 0.5, 0.25, 9  # the middle one is not shown
    found = panels({"pairs": shares, "pairs.epoch": np.arange(10, 19)})
    assert list(found) == [f"pairs, epoch {n}" for n in (10, 12, 15, 18)]
    first, last = (found[f"pairs, epoch {n}"].images[0] for n in (10, 18))
    assert np.array_equal(first.get_array(), shares[0])
    assert np.array_equal(last.get_array(), shares[8])
    assert {image.norm.vmax for image in (first, last)} == {0.5}
    assert labels(found["pairs, epoch 10"].xaxis) == ["a", "b", "c"]


def test_pairs_are_points_and_single_values_a_line():
    epochs = np.array([3, 4])
    pairs = np.array([[0.1, 0.4], [0.2, 0.3]])
    found = panels(
        {
            "actual_vs_predicted": pairs,
            "actual_vs_predicted.epoch": epochs,
            "entropy": np.array([0.5, 0.4]),
            "entropy.epoch": epochs,
        }
    )
    points = found["actual vs predicted"]
    assert np.array_equal(points.collections[0].get_offsets(), pairs)
    assert (points.get_xlabel(), points.get_ylabel()) == ("predicted", "actual")
    assert np.array_equal(found["entropy"].lines[0].get_ydata(), [0.5, 0.4])


def test_many_classes_and_groups_go_by_number():
    epochs = np.array([3])
    found = panels(
        {
            "many": np.ones((1, 50)),
            "many.epoch": epochs,
            "two": np.zeros((1, 2)),
            "two.epoch": epochs,
        },
        [str(c) for c in range(50)],
    )
    assert found["many"].get_ylabel() == "class"
    assert found["two"].get_ylabel() == "group"

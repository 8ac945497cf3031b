"""Confidence and accuracy, by group of classes."""

import numpy as np
import pytest
import torch
from made_predictions import predictions

from ltbench.analysis import calibration
from ltbench.metrics import LongTailMetrics


def test_errors_of_calibration_are_those_of_the_metric_on_each_group():
    made, ten, logits = predictions()
    result = calibration.analyse(made, ten, "test").values["by"]
    groups = {"all": range(10), "head": range(3), "mid": range(3, 7), "tail": range(7, 10)}
    for way, who in (("true", made.label), ("predicted", made.prediction)):
        for name, members in groups.items():
            chosen = np.isin(who, list(members))
            metric = LongTailMetrics(10)
            metric.update(logits[chosen], torch.from_numpy(made.label[chosen]))
            entry = result[way][name]
            assert entry["images"] == chosen.sum() == sum(entry["bin_images"])
            assert entry["ece"] == pytest.approx(float(metric.compute()["ece"]), abs=1e-6)
            assert entry["accuracy"] == pytest.approx(float(metric.compute()["accuracy"]))


def test_an_edge_belongs_to_the_bin_below_and_an_empty_group_says_nothing():
    result = calibration.reliability_entry(
        np.array([0.25, 0.2500001, 1.0]), np.array([True, False, True]), 4
    )
    assert result["bin_images"] == [1, 1, 0, 1]
    assert result["bin_accuracy"] == [1, 0, None, 1]
    empty = calibration.reliability_entry(np.array([]), np.array([], dtype=bool), 4)
    assert (empty["ece"], empty["images"]) == (None, 0)

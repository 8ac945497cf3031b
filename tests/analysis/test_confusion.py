"""Which classes are mistaken for which."""

import numpy as np
import pytest
from made_predictions import predictions
from sklearn.metrics import confusion_matrix

from ltbench.analysis import confusion
from ltbench.metrics.counts import Classes
from ltbench.records import Predictions


def test_the_table_of_confusion_is_sklearns_matrix():
    made, ten, _ = predictions()
    matrix = confusion_matrix(made.label, made.prediction, labels=range(10))
    table = confusion.class_table(made, ten).set_index("class")
    groups = {"head": range(3), "mid": range(3, 7), "tail": range(7, 10)}
    for c in range(10):
        row, counts = table.loc[c], matrix[c]
        assert row["images"] == counts.sum()
        assert row["recall"] == pytest.approx(counts[c] / counts.sum())
        for name, members in groups.items():
            lost = sum(counts[m] for m in members if m != c)
            assert row[f"lost_to_{name}"] == pytest.approx(lost / counts.sum())
        others = sorted((-n, k) for k, n in enumerate(counts) if k != c and n)
        for place in range(3):
            expected = f"c{others[place][1]}" if place < len(others) else ""
            assert row[f"taken_for_{place + 1}"] == expected
    flows = confusion.group_flows(made, ten)
    assert flows.sum(1) == pytest.approx([1, 1, 1])
    assert flows[2, 0] == pytest.approx(matrix[7:, :3].sum() / matrix[7:].sum())


def test_confusion_of_8142_classes_is_a_table_and_no_matrix():
    classes = 8142
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 3)
    predicted = np.where(rng.random(len(labels)) < 0.6, labels, rng.integers(0, 900, len(labels)))
    counts = np.sort(rng.integers(2, 1000, classes))[::-1]
    names, made = [f"s{i}" for i in range(classes)], Predictions(labels, labels, predicted)
    result = confusion.analyse(made, Classes(names, counts), "val")
    assert set(result.figures) == {"groups", "swallowers"}
    assert len(result.tables[""]) == classes
    assert len(result.summary) < 30
    assert result.values["flows"][2][0] > 0.3

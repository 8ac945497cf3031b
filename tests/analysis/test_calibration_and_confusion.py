import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from digit_runs import analyze
from sklearn.metrics import confusion_matrix

from ltbench.analysis import calibration, confusion
from ltbench.metrics import LongTailMetrics
from ltbench.metrics.counts import Classes
from ltbench.records import Predictions

COUNTS = [500, 300, 200, 90, 60, 40, 30, 12, 8, 5]


def predictions(images=400, seed=0, classes=10):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    logits += np.log(COUNTS[:classes])
    scores = torch.from_numpy(logits).float().softmax(1)
    sure, predicted = scores.max(1)
    names = [f"c{i}" for i in range(classes)]
    counts = np.array(COUNTS[:classes])
    made = Predictions(np.arange(images), labels, predicted.numpy(), sure.numpy().astype(float))
    return made, Classes(names, counts), scores.log()


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
    result = calibration.reliability(
        np.array([0.25, 0.2500001, 1.0]), np.array([True, False, True]), 4
    )
    assert result["bin_images"] == [1, 1, 0, 1]
    assert result["bin_accuracy"] == [1, 0, None, 1]
    empty = calibration.reliability(np.array([]), np.array([], dtype=bool), 4)
    assert (empty["ece"], empty["images"]) == (None, 0)


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


def test_a_run_needs_neither_its_data_nor_torch_for_what_it_recorded(digits_run, tmp_path):
    where = ["--run", str(digits_run.folder), "--output", str(tmp_path)]
    script = (
        "import sys; from ltbench.cli import main\n"
        f"for a in ('calibration', 'confusion'): main(['analyze', a, *{where!r}])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    result = json.loads((tmp_path / "calibration.json").read_text())
    record = json.loads((digits_run.folder / "record.json").read_text())
    metrics = record["metrics"]["last"]["test"]
    assert result["by"]["true"]["all"]["ece"] == pytest.approx(metrics["ece"], abs=1e-6)
    table = pd.read_csv(tmp_path / "confusion.csv")
    recalls = table.sort_values("class")["recall"].tolist()
    assert recalls == pytest.approx(metrics["per_class_recall"])


def test_predicting_now_says_what_was_recorded(ltbench, digits_run, tmp_path):
    kept = analyze(ltbench, "calibration", digits_run.folder, tmp_path / "a", "--bins", "10")
    words = ("--bins", "10", "--data.eval_batch_size", "64")
    now = analyze(ltbench, "calibration", digits_run.folder, tmp_path / "b", *words)
    assert now["settings"]["overrides"] == ["--data.eval_batch_size", "64"]
    for way in ("true", "predicted"):
        for group, entry in kept["by"][way].items():
            assert now["by"][way][group]["images"] == entry["images"]
            if entry["images"]:
                assert now["by"][way][group]["ece"] == pytest.approx(entry["ece"], abs=1e-5)

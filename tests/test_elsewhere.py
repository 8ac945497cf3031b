"""A finished run on images that it has never seen, wherever its own are."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, recall_score
from support import write_images


@pytest.fixture
def alone(folder_run, tmp_path):
    """The run folder, far from its images."""
    return shutil.copytree(folder_run, tmp_path / "alone")


def test_predictions_need_the_run_folder_alone(ltbench, alone, folder_run, tmp_path):
    new = shutil.copytree(folder_run.parents[1] / "new", tmp_path / "new")
    single = shutil.copy(sorted(new.iterdir())[0], tmp_path / "single.png")
    done = ltbench("predict", "--run", alone, "--images", new, single, "--output", "new.csv")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "new.csv")
    assert list(table["image"]) == [str(path) for path in (*sorted(new.iterdir()), single)]
    assert table["class"].iloc[0] == table["class"].iloc[-1]  # the same image
    assert set(table["class"]) <= {"ant", "bee", "cat"}


def test_another_labelled_folder_is_matched_by_class_name(ltbench, alone, tmp_path):
    write_images(tmp_path / "other/test", {"bee": 5, "cat": 6}, seed=3)
    done = ltbench(
        "test", "--run", alone, "--data.root", tmp_path / "other", "--output", "metrics.json"
    )
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    words = ("predict", "--run", alone, "--images", tmp_path / "other/test", "--output", "new.csv")
    assert ltbench(*words).code == 0
    predicted = pd.read_csv(tmp_path / "new.csv")["class"]
    truth = ["bee"] * 5 + ["cat"] * 6
    recalls = recall_score(truth, predicted, labels=["bee", "cat"], average=None)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["mean_recall"] == pytest.approx(np.mean(recalls))
    assert metrics["per_class_recall"][1:] == pytest.approx(list(recalls))
    assert f"{100 * metrics['accuracy']:.1f}" in done.out


def test_its_own_test_folder_gives_what_its_record_says(ltbench, alone, folder_run, tmp_path):
    root = folder_run.parents[1] / "images"
    assert ltbench("test", "--run", alone, "--data.root", root, "--output", "m.json").code == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    recorded = json.loads((alone / "record.json").read_text())["metrics"]["last"]["test"]
    for name in ("accuracy", "mean_recall", "min_recall", "min_coverage", "ece"):
        assert metrics[name] == pytest.approx(recorded[name], abs=1e-6)


def test_bad_input(refused, alone, tmp_path):
    write_images(tmp_path / "other/test", {"bee": 2, "wasp": 2})
    assert "wasp" in refused("test", "--run", alone, "--data.root", tmp_path / "other")
    assert "nowhere" in refused("test", "--run", alone, "--data.root", tmp_path / "nowhere")
    assert "nowhere" in refused("predict", "--run", alone, "--images", tmp_path / "nowhere")
    assert "--images" in refused("predict", "--run", alone)

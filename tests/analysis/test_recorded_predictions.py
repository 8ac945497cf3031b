"""Analyses of predictions take those that the run recorded, or predict now."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from digit_runs import analyze


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

import importlib
import json
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


@pytest.mark.slow
def test_the_speed_script_runs_and_writes_every_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SPEED)
    monkeypatch.setenv("PYTHONPATH", str(SPEED))  # for the processes that measure the gains
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "selmix_gain.json"
    script = importlib.import_module("selmix_gain")
    words = ["--classes", "3", "10", "--steps", "1", "--repeats", "1", "--output", str(output)]
    script.main(words)
    result = json.loads(output.read_text())
    assert next(iter(result)) == "ratios"
    assert set(result["ratios"]) == {"selmix_over_mixup", "look_over_forward"}
    assert all(ratio > 0 for pair in result["ratios"].values() for ratio in pair.values())
    assert list(result["gains"]) == ["3", "10"]
    assert all(row["seconds"]["gains"]["wall"] > 0 for row in result["gains"].values())
    (repeat,) = result["repeats"]
    assert list(repeat) == ["selmix", "mixup", "look", "forward"]
    assert "SelMix step" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]

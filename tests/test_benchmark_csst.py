import importlib
import json
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


@pytest.mark.slow
def test_the_speed_script_of_csst_runs_and_writes_every_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SPEED)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "csst.json"
    script = importlib.import_module("csst")
    small = ["--batch-size", "2", "--held-out", "20", "--steps", "1", "--repeats", "1"]
    script.main([*small, "--output", str(output)])
    result = json.loads(output.read_text())
    assert next(iter(result)) == "ratios"
    assert set(result["ratios"]) == {"csst_step_over_fixmatch_step", "csst_over_fixmatch"}
    assert all(ratio > 0 for pair in result["ratios"].values() for ratio in pair.values())
    (repeat,) = result["repeats"]
    assert set(repeat) == {"fixmatch", "csst", "update"}
    assert len(result["objectives_1000_classes_milliseconds"]) == 9
    assert "CSST step" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]

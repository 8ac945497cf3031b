import importlib
import json
from pathlib import Path

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


def test_the_speed_script_runs_and_writes_every_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SPEED)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "training.json"
    script = importlib.import_module("training")
    script.main(["--steps", "2", "--repeats", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert next(iter(result)) == "ratios"
    assert set(result["ratios"]) == {"project_over_bare", "sam_over_bare", "augment_share"}
    assert all(ratio > 0 for pair in result["ratios"].values() for ratio in pair.values())
    (repeat,) = result["repeats"]
    assert {name: row["images"] for name, row in repeat.items()} == dict.fromkeys(
        ("project", "bare", "sam", "augment"), 2 * 128
    )
    assert "SAM step" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]

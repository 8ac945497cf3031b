import json
import subprocess
import sys
from pathlib import Path

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


def test_the_speed_script_runs_and_writes_every_ratio(tmp_path):
    output = tmp_path / "training.json"
    few = ["--steps", "2", "--repeats", "1", "--threads", "1", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(SPEED / "training.py"), *few],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert next(iter(result)) == "ratios"
    assert set(result["ratios"]) == {"project_over_bare", "sam_over_bare", "augment_share"}
    assert all(ratio > 0 for pair in result["ratios"].values() for ratio in pair.values())
    (repeat,) = result["repeats"]
    assert {name: lane["images"] for name, lane in repeat.items()} == dict.fromkeys(
        ("project", "bare", "sam", "augment"), 2 * 128
    )
    assert not list(tmp_path.glob("runs*"))  # a benchmark leaves its JSON file and nothing else

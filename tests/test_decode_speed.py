import importlib
import json
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_the_decoding_script_runs_and_compares_with_torchvision(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SPEED)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "decode.json"
    words = ["--number", "6", "--made", "160", "120", "--size", "32", "--repeats", "1"]
    words += ["--batch", "3", "--workers", "1", "--output", str(output)]
    importlib.import_module("decode").main(words)
    result = json.loads(output.read_text())
    assert next(iter(result)) == "ratios"
    assert "crop / torchvision" in result["ratios"]
    rates = result["images_per_second"]
    assert rates.keys() >= {"torchvision", "crop, whole", "crop", "centre", "loader, workers: 1"}
    assert all(rate > 0 for clocks in rates.values() for rate in clocks.values())
    assert (result["setting"]["number"], result["setting"]["median_width"]) == (6, 160)
    assert "Decoding" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]

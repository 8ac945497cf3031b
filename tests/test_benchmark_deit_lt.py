"""The speed script of DeiT-LT, on a student of no size."""

import importlib
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_script_runs_and_writes_every_ratio(tmp_path, monkeypatch, capsys):
    config = yaml.safe_load((ROOT / "configs" / "deitlt_tiny_cifar10.yaml").read_text())
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config["model"]["init_args"]["backbone_args"] = sizes
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")
    monkeypatch.chdir(tmp_path)
    words = ["--config", "small.yaml", "--steps", "2", "--repeats", "1", "--batch-size", "16"]
    importlib.import_module("deit_lt").main([*words, "--output", "speed.json"])
    result = json.loads(Path("speed.json").read_text())
    assert set(result["ratios"]) == {"over_parts", "over_parts_and_augment"}
    assert all(ratio > 0 for pair in result["ratios"].values() for ratio in pair.values())
    (repeat,) = result["repeats"]
    assert {name: row["images"] for name, row in repeat.items()} == dict.fromkeys(
        ("project", "student", "teacher", "augment"), 2 * 16
    )
    assert "student step and teacher" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "speed.json"}

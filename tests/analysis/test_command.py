import inspect
import json
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from digit_runs import analyze, copy_of

from ltbench.analysis.command import Analysis, analyses
from ltbench.records import Predictions


def test_help_lists_every_analysis_without_torch(ltbench):
    done = ltbench("analyze")
    assert done.code == 0
    assert all(f"  {name} " in done.out for name in analyses())
    script = (
        "import sys; from ltbench.cli import main\n"
        "try: main(['analyze', 'hessian', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("name", analyses())
def test_options_are_the_arguments_of_the_analysis(name):
    analysis = Analysis(analyses()[name])
    function = import_module(f"ltbench.analysis.{name}").analyse
    parameters = inspect.signature(function).parameters
    assert analysis.of_predictions == (next(iter(parameters.values())).annotation is Predictions)
    others = {n: p for n, p in parameters.items() if p.default is not p.empty}
    assert list(analysis.options) == list(others)
    for argument, parameter in others.items():
        if argument != "beside":
            assert analysis.options[argument]["default"] == parameter.default
        assert analysis.options[argument]["help"]


def test_mistakes_are_named(refused, digits_run, tmp_path):
    run = ("--run", digits_run.folder)
    assert "Did you mean 'hessian'?" in refused("analyze", "hesian", *run)
    assert "Did you mean '--steps'?" in refused("analyze", "hessian", *run, "--step", "3")
    assert "--run FOLDER" in refused("analyze", "features")
    assert "--ckpt_path" in refused("analyze", "features", *run, "--ckpt_path", digits_run.last)
    assert "last.ckpt" in refused("analyze", "features", "--run", tmp_path)
    alone = shutil.copy(digits_run.last, tmp_path)
    assert "config.yaml" in refused("analyze", "features", "--ckpt_path", alone)
    assert "'tset'" in refused("analyze", "features", *run, "--split", "tset", "--output", tmp_path)


def test_results_lie_in_the_run_folder_and_the_best_weights_beside_the_last(
    ltbench, digits_run, tmp_path
):
    folder = copy_of(digits_run, tmp_path)
    for words in ((), ("--selection", "best")):
        assert ltbench("analyze", "confusion", "--run", folder, *words).code == 0
    best = json.loads((folder / "analysis/confusion-best.json").read_text())
    last = json.loads((folder / "analysis/confusion.json").read_text())
    assert best["checkpoint"].endswith("best.ckpt")
    assert best["figures"][0] == "confusion-best.png"
    assert last["checkpoint"].endswith("last.ckpt")
    assert {p.suffix for p in (folder / "analysis").iterdir()} == {".json", ".png", ".csv"}


def test_a_checkpoint_that_moved_is_analysed_with_the_config_it_is_given(
    ltbench, digits_run, tmp_path
):
    moved = shutil.copy(digits_run.last, tmp_path / "moved.ckpt")
    config = digits_run.folder / "config.yaml"
    command = ("analyze", "features", "--ckpt_path", moved, "--config", config, "--device", "cpu")
    assert ltbench(*command).code == 0
    result = json.loads((tmp_path / "analysis/features-moved.json").read_text())
    there = analyze(ltbench, "features", digits_run.folder, tmp_path / "there")
    assert result["collapse"] == there["collapse"]


@pytest.mark.parametrize("change", ["weights", "model"])
def test_a_checkpoint_of_another_network_is_refused(refused, digits_run, tmp_path, change):
    folder = copy_of(digits_run, tmp_path)
    path = folder / "checkpoints/last.ckpt"
    if change == "weights":
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["state_dict"]["net.fc.bias"]
        torch.save(checkpoint, path)
    else:
        torch.save({"state_dict": {}}, path)
    message = refused("analyze", "features", "--run", folder, "--device", "cpu")
    assert {"weights": "net.fc.bias", "model": "last.ckpt"}[change] in message

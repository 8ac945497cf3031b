"""What the tests of the analyses share; not a conftest.py, which would hide that of the tests."""

import contextlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import yaml

from ltbench.cli import main


def analyze(ltbench, analysis, folder, output, *words):
    """Run one analysis through the command line; return its JSON, its promises checked."""
    command = ("analyze", analysis, "--run", folder, "--output", output, "--device", "cpu")
    done = ltbench(*command, *words)
    assert done.code == 0, done.err
    path = Path(done.out.rpartition("Result: ")[2].strip())
    assert path.parent == Path(output)
    result = json.loads(path.read_text())
    assert result["analysis"] == analysis
    assert result["title"]
    assert result["summary"]
    assert all(isinstance(text, str) for row in result["summary"] for text in row)
    assert {len(row) for row in result["summary"]} == {2}
    for name in [*result["figures"], *result["tables"]]:
        assert (Path(output) / name).stat().st_size > 100
    return result


def copy_of(run, tmp_path):
    """Copy a run folder, to be written into."""
    return shutil.copytree(run.folder, tmp_path / "runs" / run.folder.name)


def deit_run(run):
    """Return the folder of a small distilled ViT that learnt from ``run``, trained once."""
    return _deit_run(run.folder, run.config)


@cache
def _deit_run(teacher, config):
    home = teacher.parents[1] / "deit"
    home.mkdir()
    made = yaml.safe_load(config.read_text())
    made["trainer"]["max_epochs"] = 2
    made["model"] = {
        "class_path": "DeiTLT",
        "init_args": {
            "backbone": "deit_tiny_distilled_patch4_32",
            "backbone_args": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16},
            "teacher": {"path": str(teacher)},
            "teacher_size": 8,
            "lr_schedule": "Constant",
        },
    }
    (home / "deit.yaml").write_text(yaml.safe_dump(made))
    before = dict(os.environ)
    try:
        with contextlib.chdir(home), contextlib.redirect_stdout(None):
            main(["fit", "--config", "deit.yaml"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    (folder,) = (home / "runs").iterdir()
    return folder

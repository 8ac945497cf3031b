"""Which code made a number: versions and the state of the checkout."""

import subprocess

from ltbench.records import git_state, versions


def test_versions_are_those_of_the_packages():
    import torch

    assert versions()["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "ltbench", "lightning", "timm", "torchvision"} <= versions().keys()


def test_git_state_names_the_commit_and_whether_files_changed(tmp_path):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    code = tmp_path / "src/a.py"
    code.parent.mkdir()
    code.write_text("one")
    assert git_state(code) == {"commit": None, "dirty": None}
    git("init")
    assert git_state(code) == {"commit": None, "dirty": None}  # an installed package, in a project
    git("add", "src")
    git("commit", "-m", "one")
    clean = git_state(code)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/record.json").write_text("{}")  # what a run leaves does not count
    assert git_state(code)["dirty"] is False
    new = code.with_name("b.py")
    new.write_text("a method")
    assert git_state(code)["dirty"] is True
    new.unlink()
    code.write_text("two")
    assert git_state(code) == {"commit": clean["commit"], "dirty": True}

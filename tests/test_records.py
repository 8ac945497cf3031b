"""Records: named by what they measure, written whole, read back the same."""

import copy
import errno
import json
import math
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltbench import records
from ltbench.errors import UserError
from ltbench.records import git_state, read_record, versions, write_record, write_whole

CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "ERM", "init_args": {"loss": "vs_loss", "clip_norm": None}},
    "data": {
        "class_path": "LongTailDataModule",
        "init_args": {"source": "digits", "root": None, "num_workers": 2, "batch_size": 32},
    },
    "trainer": {"max_epochs": 40, "precision": None, "default_root_dir": "runs", "logger": None},
}


def job_id(config, fingerprint="digits"):
    return records.job_id(config, fingerprint)


def changed(group, key, value):
    config = copy.deepcopy(CONFIG)
    (config[group].get("init_args") or config[group])[key] = value
    return config


def test_job_id_is_16_hex_digits_in_any_order_of_keys():
    assert len(job_id(CONFIG)) == 16
    assert int(job_id(CONFIG), 16) >= 0
    assert job_id(dict(reversed(CONFIG.items()))) == job_id(CONFIG)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("model", "loss", "ce"),
        ("model", "clip_norm", 1.0),
        ("data", "batch_size", 64),
        ("data", "source", "cifar10"),
        ("trainer", "max_epochs", 41),
        ("trainer", "precision", "bf16-mixed"),
    ],
)
def test_job_id_tells_experiments_apart(group, key, value):
    assert job_id(changed(group, key, value)) != job_id(CONFIG)


def test_job_id_tells_seeds_and_data_apart():
    assert job_id({**CONFIG, "seed_everything": 1}) != job_id(CONFIG)
    assert job_id(CONFIG, "other images") != job_id(CONFIG)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("data", "root", "/elsewhere"),
        ("data", "num_workers", 8),
        ("data", "predict_folder", "/new"),
        ("trainer", "default_root_dir", "/elsewhere"),
        ("trainer", "enable_progress_bar", False),
    ],
)
def test_job_id_does_not_depend_on_where_and_how_it_is_shown(group, key, value):
    assert job_id(changed(group, key, value)) == job_id(CONFIG)


def test_job_id_ignores_what_is_added_beside_the_experiment():
    assert job_id({**CONFIG, "name": "x", "ckpt_path": "y"}) == job_id(CONFIG)


# --- files ---


def test_write_whole_makes_the_folder_and_leaves_no_part(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_whole(path, lambda file: file.write(b"one"))
    write_whole(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_file(where, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_record(path, {"schema": 1, "status": "done", "old": True})

    def fail(*args):
        raise OSError(errno.ENOSPC, "no space")

    def half(file):
        file.write(b'{"schema": 1, "ol')
        if where == "write":
            fail()

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if where == "rename":
        monkeypatch.setattr(records.Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, half)
    assert read_record(path) == {"schema": 1, "status": "done", "old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # a lone surrogate is no text and has no UTF-8
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(content=VALUES)
def test_a_record_is_read_back_as_it_was_written(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_record(path, {"schema": 1, "status": "done", "content": content})
    assert read_record(path) == {"schema": 1, "status": "done", "content": content}


def test_what_json_lacks_becomes_null_or_text(tmp_path):
    path = tmp_path / "record.json"
    odd = {"nan": math.nan, "inf": [math.inf, (1, -math.inf)], "path": tmp_path, 3: "three"}
    write_record(path, {"schema": 1, **odd})

    def refuse(name):
        raise AssertionError(name)

    loaded = json.loads(path.read_text(), parse_constant=refuse)
    expected = {"schema": 1, "nan": None, "inf": [None, [1, None]], "path": str(tmp_path)}
    assert loaded == {**expected, "3": "three"}


@pytest.mark.parametrize("text", ["", '{"schema": 1', "[]", "{}", "3", '{"job_id": "x"}'])
def test_what_is_no_record_is_refused_by_name(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"record\.json is no readable run record"):
        read_record(path)


def test_a_missing_record_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"record\.json is no readable run record"):
        read_record(tmp_path / "record.json")


def test_a_record_of_a_newer_ltbench_is_refused(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"schema": records.SCHEMA + 1})
    with pytest.raises(UserError, match="upgrade ltbench"):
        read_record(path)


# --- where the numbers come from ---


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

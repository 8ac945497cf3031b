"""Records: named by what they measure, written whole, read back the same."""

import copy
import errno
import json
import math
import os
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import record_of

from ltbench import records
from ltbench.data.sources import SOURCES
from ltbench.errors import UserError
from ltbench.naming import resolve
from ltbench.records import (
    RunFolder,
    canonical,
    files,
    git_state,
    read_npz,
    read_record,
    recipe,
    schema,
    versions,
    write_json,
    write_npz,
    write_record,
    write_whole,
)

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
        ("data", "eval_batch_size", 64),
        ("trainer", "default_root_dir", "/elsewhere"),
        ("trainer", "enable_progress_bar", False),
        ("trainer", "log_every_n_steps", 1),
    ],
)
def test_where_and_how_it_is_shown_makes_no_other_run_and_no_other_recipe(group, key, value):
    other = changed(group, key, value)
    assert job_id(other) == job_id(CONFIG)
    assert recipe({"config": other}) == recipe({"config": CONFIG})


def test_seeds_share_a_recipe_and_experiments_do_not():
    assert recipe({"config": {**CONFIG, "seed_everything": 1}}) == recipe({"config": CONFIG})
    assert recipe({"config": changed("model", "loss", "ce")}) != recipe({"config": CONFIG})


def test_our_classes_have_one_spelling_and_those_of_others_keep_theirs():
    ours = {"class_path": "ltbench.data.augment.RandomCrop", "init_args": {"padding": 4}}
    config = {"model": {"class_path": "their.Method"}, "data": {"augment": [ours]}}
    assert canonical(config) == {
        "model": {"class_path": "their.Method"},
        "data": {"augment": [{"class_path": "RandomCrop", "init_args": {"padding": 4}}]},
    }


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
    write_json(path, {"old": True})

    def fail(*args):
        raise OSError(errno.ENOSPC, "no space")

    def half(file):
        file.write(b'{"ol')
        if where == "write":
            fail()

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if where == "rename":
        monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, half)
    assert files.read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


PARTS = {name: None for name in schema.PARTS} | record_of()
PARTS["data"]["head_mid_tail"] = [1, 1, 1]
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


@settings(deadline=None)  # a disk may be busy
@given(content=VALUES)
def test_a_record_is_read_back_as_it_was_written(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    config = {"seed_everything": content}
    write_record(path, **PARTS | {"config": config})
    assert read_record(path) == {**PARTS, "schema": 1, "config": canonical(config)}


def test_what_json_lacks_becomes_null_or_text(tmp_path):
    path = tmp_path / "record.json"
    odd = {"nan": math.nan, "inf": [math.inf, (1, -math.inf)], "path": tmp_path, 3: "three"}
    write_json(path, odd)

    def refuse(name):
        raise AssertionError(name)

    loaded = json.loads(path.read_text(), parse_constant=refuse)
    expected = {"nan": None, "inf": [None, [1, None]], "path": str(tmp_path)}
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
    write_json(path, record_of(schema=records.SCHEMA + 1))
    with pytest.raises(UserError, match="upgrade ltbench"):
        read_record(path)


def test_a_record_is_written_with_every_part_of_its_shape_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(TypeError, match="seed"):
        write_record(path, **{name: part for name, part in PARTS.items() if name != "seed"})
    with pytest.raises(TypeError, match="colour"):
        write_record(path, **PARTS, colour="red")
    with pytest.raises(UserError, match="seed"):
        write_record(path, **PARTS | {"seed": "one"})
    assert not path.exists()


def test_an_old_record_is_read_in_the_present_form(tmp_path):
    path = tmp_path / "record.json"
    old = record_of(dataset="cifar100")
    old["data"] |= {"class_names": ["x"] * 100, "class_counts": [5] * 100}
    old["config"]["model"]["class_path"] = "ltbench.methods.erm.ERM"
    write_json(path, old)
    record = read_record(path)
    assert record["data"]["head_mid_tail"] == [36, 35, 29]
    assert record["config"]["model"]["class_path"] == "ERM"
    write_json(path, old | {"dataset": "folder"})  # of 100 classes, too
    assert read_record(path)["data"]["head_mid_tail"] is None


def test_old_records_have_the_sizes_that_the_sources_declare():
    for name, sizes in schema._HEAD_MID_TAIL.items():
        assert tuple(sizes) == resolve("source", name, SOURCES).head_mid_tail


def test_arrays_are_read_back_and_damage_is_named(tmp_path):
    path = tmp_path / "a/b.npz"
    write_npz(path, {"one": np.arange(3), "two": np.eye(2)})
    assert read_npz(path)["one"].tolist() == [0, 1, 2]
    assert read_npz(path, "one").keys() == {"two"}
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"b\.npz is damaged"):
        read_npz(path)


def test_a_checkpoint_knows_its_run_folder(tmp_path):
    run = RunFolder(tmp_path)
    for checkpoint in (run.checkpoint("best"), tmp_path / "x.ckpt"):
        assert RunFolder.of_checkpoint(checkpoint).path == tmp_path


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

"""Files are written whole, and read back the same or refused by name."""

import errno
import json
import math
import os

import numpy as np
import pytest

from ltbench.errors import UserError
from ltbench.records import RunFolder, files, read_npz, write_json, write_npz, write_whole


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


def test_what_json_lacks_becomes_null_or_text(tmp_path):
    path = tmp_path / "record.json"
    odd = {"nan": math.nan, "inf": [math.inf, (1, -math.inf)], "path": tmp_path, 3: "three"}
    write_json(path, odd)

    def refuse(name):
        raise AssertionError(name)

    loaded = json.loads(path.read_text(), parse_constant=refuse)
    expected = {"nan": None, "inf": [None, [1, None]], "path": str(tmp_path)}
    assert loaded == {**expected, "3": "three"}


def test_arrays_are_read_back_and_damage_is_named(tmp_path):
    path = tmp_path / "a/b.npz"
    write_npz(path, {"one": np.arange(3), "two": np.eye(2)})
    assert read_npz(path)["one"].tolist() == [0, 1, 2]
    assert read_npz(path, "one").keys() == {"two"}
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"b\.npz"):
        read_npz(path)


def test_a_checkpoint_knows_its_run_folder(tmp_path):
    run = RunFolder(tmp_path)
    for checkpoint in (run.checkpoint("best"), tmp_path / "x.ckpt"):
        assert RunFolder.of_checkpoint(checkpoint).path == tmp_path

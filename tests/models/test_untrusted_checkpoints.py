"""Checkpoints of others: nothing in them runs, and none takes more memory than it has bytes."""

import io
import os
import pickle
import resource
import zipfile

import pytest
import torch

from ltbench.errors import UserError
from ltbench.models import weights
from ltbench.untrusted import load_checkpoint


class Call:
    """Is pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def inflated(path):
    """Compress a gigabyte of zeros into a megabyte."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        with archive.open(pickled.replace("data.pkl", "data/1"), "w") as member:
            for _ in range(64):
                member.write(bytes(2**20))


def claiming(size):
    """Let the one storage of a checkpoint claim another size."""

    def write(path):
        torch.save({"a": torch.zeros(4)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        claim = b"J" + size.to_bytes(4, "little")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if name.endswith("data.pkl"):
                    assert content.count(b"K\x04") == 2
                    content = content.replace(b"K\x04", claim)
                archive.writestr(name, content)

    return write


def called(function, *args):
    """Write what torch would load by calling a function."""

    def write(path):
        torch.save({"a": torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if name.endswith("data.pkl"):
                    content = pickle.dumps({"a": Call(function, *args)}, 2)
                archive.writestr(name, content)

    return write


def saved(content, **options):
    return lambda path: torch.save(content, path, **options)


def expanded(rows):
    return torch.zeros(1).expand(rows)


SPARSE = torch.sparse_coo_tensor(size=(10**6, 10**6), check_invariants=True)
BAD = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "compressed": inflated,
    "a storage that claims more": claiming(250_000_000),
    "bytes made from a number": called(bytearray, 2**31),
    "a tensor repeated": saved({"a": expanded(10**9)}),
    "a tensor repeated in a list": saved({"a": [({"b": expanded(10**9)},)]}),
    "a tensor repeated, in the old format": saved(
        {"a": expanded(10**9)}, _use_new_zipfile_serialization=False
    ),
    "a sparse tensor": saved(
        {"a": torch.sparse_coo_tensor(size=(10**6, 10**6), check_invariants=True)}
    ),
    "a tensor without data": saved({"a": torch.empty(10**12, device="meta")}),
    "a call": called(os.system, "touch trace"),
    "a call in the old format": saved(
        {"a": Call(os.mkdir, "trace")}, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_and_takes_no_memory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.ckpt"
    BAD[name](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"bad\.ckpt"):
        weights.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_loaded(zipped, tmp_path):
    tied = torch.arange(6.0).view(2, 3)
    content = {"a": tied, "b": tied.T, "c": [torch.ones(2, dtype=torch.bfloat16), {"d": 1}]}
    content["e"] = torch.nn.Parameter(tied)
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    for mmap in (False, True):
        loaded = load_checkpoint(tmp_path / "a.ckpt", mmap)
        assert torch.equal(loaded["b"], tied.T)
        assert torch.equal(loaded["e"], tied)
        assert loaded["c"][0].dtype == torch.bfloat16


def test_a_file_in_memory_is_saved_alike(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    assert load_checkpoint(tmp_path / "a.ckpt")["a"].sum() == 3

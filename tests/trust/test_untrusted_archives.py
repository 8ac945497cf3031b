"""Archives of data sets: one that was tampered with is refused, and nothing of it is unpacked."""

import io
import pickle
import tarfile
from urllib.error import URLError

import pytest
from bad_case import Evil
from torchvision import datasets

from ltbench.data.sources import build_source
from ltbench.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder for data, in a working folder without a network."""

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "dataset"), [("cifar10", datasets.CIFAR10), ("stl10", datasets.STL10)]
)
def test_an_archive_writes_nothing_outside_its_folder(name, dataset, root):
    with tarfile.open(root / dataset.filename, "w:gz") as archive:
        for path in ("../outside", f"{dataset.base_folder}/inside"):
            archive.addfile(tarfile.TarInfo(path), io.BytesIO())
    with pytest.raises(UserError, match="could not be downloaded"):
        build_source(name, root).labels("train")
    assert {path.name for path in root.iterdir()} <= {dataset.filename, ".download.lock"}
    assert {path.name for path in root.parent.iterdir()} == {"data"}


def test_a_batch_that_was_tampered_with_is_not_loaded(root):
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir()
    listed = [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]
    for name in [*(name for name, _ in listed), datasets.CIFAR10.meta["filename"]]:
        (folder / name).write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match="could not be downloaded"):
        build_source("cifar10", root).labels("train")
    assert not (root.parent / "trace").exists()

"""Fixtures of the tests of whole runs: the command line, a tiny run, folders of images."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from support import TINY, run_command, write_images


def pytest_addoption(parser):
    parser.addoption("--rehearse", action="store_true", help="run what needs a GPU on the CPU")


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available() and not config.getoption("--rehearse"):
        skip = pytest.mark.skip(reason="needs a GPU; --rehearse tries it on the CPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path_factory):
    """Give each test an environment without a seed or a data folder, and all of them one cache."""
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "LTBENCH_DATA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def ltbench(tmp_path):
    """The command line, run in the test's own folder."""

    def run(*words, cwd=tmp_path):
        return run_command(*words, cwd=cwd)

    return run


@pytest.fixture
def refused(ltbench):
    """The command line, expected to refuse: code 2, a short message and no traceback."""

    def run(*words, code=2, **options):
        done = ltbench(*words, **options)
        assert (done.code, done.out) == (code, "")
        assert done.err.startswith("error: ")
        assert len(done.err.splitlines()) <= 3
        assert "Traceback" not in done.err
        return done.err

    return run


@pytest.fixture
def tiny(tmp_path):
    """A config of a run of some seconds: 4 epochs of 6 steps on the digits."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """One finished run of the tiny config, not to be changed; its folder and its config."""
    home = tmp_path_factory.mktemp("digits_run")
    config = home / "tiny.yaml"
    config.write_text(TINY)
    done = run_command("fit", "--config", config, cwd=home)
    assert done.code == 0, done.err
    (folder,) = (home / "runs").iterdir()
    checkpoints = folder / "checkpoints"
    return SimpleNamespace(
        config=config, folder=folder, last=checkpoints / "last.ckpt", best=checkpoints / "best.ckpt"
    )


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory):
    """A run on a folder of images larger than those that its network sees, and its home."""
    home = tmp_path_factory.mktemp("folder_run")
    write_images(home / "images/train", {"ant": 20, "bee": 9, "cat": 4})
    write_images(home / "images/test", {"ant": 4, "bee": 4, "cat": 5}, seed=1)
    write_images(home / "new", {"": 7}, size=19, seed=2)
    data = {"source": "folder", "root": "images", "profile": "natural", "batch_size": 8}
    data |= {"image_size": 10, "decoding": {"resize": 11}, "eval_batch_size": 3}
    (home / "of_folder.yaml").write_text(
        json.dumps(
            {
                "trainer": {
                    "max_epochs": 1,
                    "accelerator": "cpu",
                    "enable_progress_bar": False,
                    "precision": "bf16-mixed",
                },
                "model": {"class_path": "ERM", "init_args": {"backbone": "tiny_net"}},
                "data": {"class_path": "LongTailDataModule", "init_args": data},
            }
        )
    )
    done = run_command("fit", "--config", "of_folder.yaml", cwd=home)
    assert done.code == 0, done.err
    (folder,) = (home / "runs").iterdir()
    return folder


@pytest.fixture
def make_images():
    """The writer of class folders full of images."""
    return write_images


@pytest.fixture
def images(tmp_path):
    """A long-tailed folder of images in three classes, and what a config says of it."""
    write_images(tmp_path / "images/train", {"ant": 20, "bee": 9, "cat": 3})
    write_images(tmp_path / "images/test", {"ant": 4, "bee": 4, "cat": 5}, seed=1)
    return tmp_path / "images"


@pytest.fixture
def of_folder(tmp_path, images):
    """The tiny config on that folder."""
    config = yaml.safe_load(TINY)
    config["data"]["init_args"] = {
        "source": "folder",
        "root": str(images),
        "profile": "natural",
        "batch_size": 8,
    }
    config["trainer"]["max_epochs"] = 1
    path = tmp_path / "of_folder.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

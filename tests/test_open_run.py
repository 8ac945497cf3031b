"""A finished run in a notebook: its network, its data, and what it says of new images."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support import run_command, write_images

import ltbench as package
from ltbench import records
from ltbench.errors import UserError


@pytest.fixture
def copy(digits_run, tmp_path):
    return shutil.copytree(digits_run.folder, tmp_path / "copy")


@pytest.mark.parametrize("selection", ["last", "best"])
def test_it_says_of_the_test_images_what_the_run_stored(digits_run, selection):
    run = package.open_run(digits_run.folder, selection, device="cpu")
    with np.load(digits_run.folder / f"predictions_{selection}.npz") as stored:
        images = run.data.source.images("test", stored["index"])
        found = run.predict(images)
        logits = torch.from_numpy(stored["logits"])
        assert np.array_equal(found.probabilities, logits.softmax(1).numpy())
        assert np.array_equal(found.labels, stored["prediction"])
        assert np.array_equal(found.probabilities.max(1), stored["confidence"])
    assert found.class_names == [run.class_names[c] for c in found.labels]
    assert not run.model.training
    assert run.record["name"] == "tiny"
    assert np.array_equal(run.predict(images.numpy()).probabilities, found.probabilities)


def test_it_says_of_files_what_predict_writes(folder_run):
    home = folder_run.parents[1]
    words = ["--config", folder_run / "config.yaml", "--data.predict_folder", "new"]
    words += ["--ckpt_path", folder_run / "checkpoints/last.ckpt"]
    done = run_command("predict", *words, cwd=home)
    assert done.code == 0, done.err
    table = pd.read_csv(home / "predictions.csv")
    run = package.open_run(folder_run, device="cpu")
    found = run.predict(home / "new")
    assert [str(path.relative_to(home)) for path in found.images] == table["image"].tolist()
    assert found.class_names == table["class"].tolist()
    stored = table["confidence"].to_numpy(np.float32)
    assert np.array_equal(found.probabilities.max(1), stored)
    files = found.images
    opened = [Image.open(path) for path in files]
    for images in ([str(path) for path in files], opened, [home / "new"]):
        assert np.array_equal(run.predict(images).probabilities, found.probabilities)
    one = run.predict(files[0])
    assert (one.images, one.probabilities.shape) == ([files[0]], (1, 3))
    assert run.predict(opened[0]).class_names == one.class_names


def test_its_images_may_be_gone(folder_run, tmp_path):
    copy = shutil.copytree(folder_run, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("root: images", f"root: {tmp_path / 'no'}"))
    run = package.open_run(copy, device="cpu")
    assert run.class_names == ["ant", "bee", "cat"]
    assert run.predict(folder_run.parents[1] / "new").probabilities.shape == (7, 3)
    with pytest.raises(UserError, match="no"):
        run.data  # noqa: B018


def test_other_images_in_their_place_are_not_taken_for_them(folder_run, tmp_path):
    copy = shutil.copytree(folder_run, tmp_path / "copy")
    write_images(tmp_path / "images/train", {"ant": 20, "bee": 9, "cat": 3})
    config = (copy / "config.yaml").read_text()
    moved = config.replace("root: images", f"root: {tmp_path / 'images'}")
    (copy / "config.yaml").write_text(moved)
    with pytest.raises(UserError, match="other images"):
        package.open_run(copy).data  # noqa: B018


def test_a_folder_that_cannot_be_opened_says_why(copy, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        package.open_run(tmp_path)
    with pytest.raises(UserError, match=r"other\.ckpt"):
        package.open_run(copy, "other")
    with pytest.raises(UserError, match="nowhere"):
        package.open_run(copy, device="nowhere")
    (copy / "config.yaml").rename(copy / "away.yaml")
    with pytest.raises(UserError, match=r"config\.yaml"):
        package.open_run(copy)
    record = records.read_record(copy / "record.json")
    for change, says in (({"status": "interrupted"}, "interrupted"), ({"schema": 99}, "upgrade")):
        (copy / "record.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=says):
            package.open_run(copy)


def test_images_that_cannot_be_classified_are_refused(digits_run, tmp_path):
    run = package.open_run(digits_run.folder, device="cpu")
    bad = [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1, 8, 8), np.float32), [], tmp_path / "no"]
    for images in bad:
        with pytest.raises(UserError):
            run.predict(images)


def test_nothing_is_left_behind_in_a_notebook(digits_run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook", "--with", "its own words"])

    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        level = logging.getLogger("lightning.pytorch").level
        draws = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
        return handlers, warnings.filters[:], level, dict(os.environ), draws

    before = state()
    run = package.open_run(str(digits_run.folder), device="cpu")
    run.predict(run.data.source.images("test", [0, 1]))
    assert state() == before


def test_the_package_is_imported_without_torch():
    script = "import sys, ltbench; assert 'torch' not in sys.modules; ltbench.open_run"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError):
        package.nothing  # noqa: B018

"""Folders of images on the command line: the data report, and data that has mistakes."""

import shutil

import pytest
from support import columns

from ltbench import records


def test_data_shows_the_tail(ltbench, tiny, digits_run):
    done = ltbench("data", "--config", tiny, "--output", "tail.png")
    assert done.code == 0, done.err
    record = records.read_record(digits_run.folder / "record.json")["data"]
    assert record["index_hash"] in done.out
    assert f"train: {record['images']['train']} images" in done.out
    rows = columns(done.out.replace("┃", "│"))
    counts = {int(c): int(cells[1]) for c, cells in rows.items() if c.isdigit()}
    assert counts == dict(enumerate(record["class_counts"]))
    assert rows["0"][3] == "head"
    assert rows["9"][3] == "tail"
    assert (tiny.parent / "tail.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_names_classes_that_its_font_has(ltbench, of_folder, images):
    (images / "train/ant").rename(images / "train/$a_")  # no formula
    (images / "train/bee").rename(images / "train/蜂")
    shutil.rmtree(images / "test")
    done = ltbench("data", "--config", of_folder, "--output", "tail.svg")
    assert (done.code, done.err) == (0, "")  # no warning of a missing letter
    drawn = (of_folder.parent / "tail.svg").read_text()
    assert "<!-- $a_ -->" in drawn
    assert "<!-- few: 3 -->" in drawn


def test_missing_data_folder(refused, of_folder, tmp_path):
    words = ["--config", of_folder, "--data.init_args.root", "nowhere"]
    for command in ("fit", "data"):
        assert "nowhere/train" in refused(command, *words)
    assert not (tmp_path / "runs").exists()


def test_empty_class(refused, of_folder, images):
    (images / "train/dog").mkdir()
    assert str(images / "train/dog") in refused("fit", "--config", of_folder)


def test_class_in_test_but_not_in_train(refused, of_folder, images):
    (images / "test/dog").mkdir()
    assert "'dog'" in refused("fit", "--config", of_folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_unreadable_image(split, ltbench, refused, of_folder, images, tmp_path):
    bad = images / split / "bee" / "003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert str(bad) in refused("fit", "--config", of_folder)
    with pytest.warns(UserWarning, match="left out 1 of"):
        done = ltbench("fit", "--config", of_folder, "--data.init_args.on_bad_image", "skip")
    assert done.code == 0, done.err
    (record,) = (p for p in tmp_path.glob("runs/*/record.json") if "done" in p.read_text())
    sizes = records.read_record(record)["data"]["images"]
    assert sum(sizes.values()) == 20 + 9 + 3 + 4 + 4 + 5 - 1


def test_a_folder_without_a_test_split(ltbench, of_folder, images, tmp_path):
    shutil.rmtree(images / "test")
    done = ltbench("fit", "--config", of_folder)
    if done.code:  # refused before any time was spent on training
        assert done.code == 2
        assert str(images / "test") in done.err
        assert not list(tmp_path.glob("runs/*/checkpoints/*"))
    else:
        (record,) = tmp_path.glob("runs/*/record.json")
        assert records.read_record(record)["status"] == "done"


def test_a_run_that_nothing_can_measure_says_so(ltbench, of_folder, images):
    shutil.rmtree(images / "test")
    done = ltbench("fit", "--config", of_folder, "--data.val_fraction", 0)
    assert done.code == 0, done.err
    assert "nothing was measured" in done.out

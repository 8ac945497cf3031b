"""Images of others: only formats that we name are opened, and nothing is waited for."""

import os

import pytest
from PIL import Image
from support import write_images

from ltbench.data.sources import build_source
from ltbench.data.sources.decoding import is_readable, reading
from ltbench.errors import UserError
from ltbench.runs import finished

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
(trace) (w) file closefile
showpage
"""


def saved(kind):
    return lambda path: Image.new("RGB", (8, 8)).save(path, kind)


NOT_OPENED = {
    "PostScript": lambda path: path.write_bytes(EPS),
    **{kind: saved(kind) for kind in ("GIF", "TGA", "PDF", "ICO", "SGI", "PCX", "DDS")},
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("name", NOT_OPENED)
def test_it_is_refused_under_the_name_of_an_image(name, tmp_path):
    path = tmp_path / "x.png"
    NOT_OPENED[name](path)
    with pytest.raises(UserError, match=r"x\.png"), reading(path) as image:
        image.load()
    assert not is_readable(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
def test_an_image_may_have_the_name_of_another_kind(kind, tmp_path):
    saved(kind)(tmp_path / "x.jpg")
    assert is_readable(tmp_path / "x.jpg")


@pytest.mark.parametrize("name", ["a pipe", "PostScript"])
def test_sources_name_it_or_leave_it_out(name, tmp_path):
    write_images(tmp_path / "train", {"ant": 3, "bee": 2})
    (tmp_path / "train/ant/001.png").unlink()
    NOT_OPENED[name](tmp_path / "train/ant/001.png")
    source = build_source("folder", tmp_path)
    with pytest.raises(UserError, match=r"ant/001\.png"):
        source.images("train", [0, 1, 2])
    with pytest.warns(UserWarning, match="left out 1 of 5"):
        source = build_source("folder", tmp_path, on_bad_image="skip")
    assert len(source.labels("train")) == 4
    (tmp_path / "train.txt").write_text("train/ant/000.png 0\ntrain/ant/001.png 1\n")
    with pytest.raises(UserError, match=r"ant/001\.png"):
        build_source("lists", tmp_path)


@pytest.mark.parametrize("name", ["train.txt", "train.csv", "train2018.json"])
def test_nor_is_a_pipe_read_that_lists_images(name, tmp_path):
    os.mkfifo(tmp_path / name)
    sources = {"train.txt": "lists", "train.csv": "text", "train2018.json": "inaturalist2018"}
    with pytest.raises(UserError, match="train"):
        build_source(sources[name], tmp_path)


def test_images_to_predict_are_checked_alike(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (path,) = finished._listed(tmp_path)
    with pytest.raises(UserError, match=r"x\.png"), reading(path):
        pass

"""What files contain tells data apart, and an unchanged file is read once."""

import os

import pytest
from support import write_images

from ltbench.data.sources import build_source, contents


@pytest.fixture
def root(tmp_path):
    """Images whose hashes are remembered: they were not changed just now."""
    write_images(tmp_path / "images", {"ant": 3, "bee": 2})
    paths = sorted((tmp_path / "images").rglob("*.png"))
    lines = [f"{path.relative_to(tmp_path / 'images')} {n % 2}" for n, path in enumerate(paths)]
    (tmp_path / "images/train.txt").write_text("\n".join(lines))
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty place for hashes, in which those of the files just written are kept."""
    monkeypatch.setattr(contents, "SETTLED", -60.0)
    monkeypatch.setenv(contents.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def rewrite(path):
    """Change a file without changing its size or the time of its last change."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize("kind", ["folder", "lists"])
def test_an_image_that_is_rewritten_at_the_same_size_makes_other_data(kind, root):
    source = build_source(kind, root)
    before, listing = source.fingerprint, source.listing
    assert build_source(kind, root).fingerprint == before
    rewrite(root / "ant/001.png") if kind == "folder" else rewrite_without_a_check(root)
    again = build_source(kind, root)
    assert again.listing == listing
    assert again.fingerprint != before


def rewrite_without_a_check(root):
    """Change pixels of a PNG file, which has to end as one."""
    path = root / "ant/001.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    content[-12:] = b"\0\0\0\0IEND\xaeB`\x82"
    path.write_bytes(content)


def count_reads(monkeypatch):
    read, digest = [], contents._digest
    monkeypatch.setattr(contents, "_digest", lambda path: read.append(path) or digest(path))
    return read


def test_a_file_is_read_once_until_it_changes(root, monkeypatch):
    read = count_reads(monkeypatch)
    fingerprint = build_source("folder", root).fingerprint
    assert len(read) == 5
    assert build_source("folder", root).fingerprint == fingerprint
    assert len(read) == 5
    rewrite(root / "bee/000.png")
    assert build_source("folder", root).fingerprint != fingerprint
    assert len(read) == 6


def test_a_file_that_was_changed_just_now_is_read_again(root, monkeypatch):
    """It may change once more within the same tick of the clock, or the clock may be wrong."""
    monkeypatch.setattr(contents, "SETTLED", 60.0)
    read = count_reads(monkeypatch)
    for n in (1, 2):
        build_source("folder", root).fingerprint  # noqa: B018
        assert len(read) == 5 * n


def cut(store):
    store.write_bytes(store.read_bytes()[:-30])


def garble(store):
    content = bytearray(store.read_bytes())
    content[len(content) // 2] ^= 255
    store.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut, garble, lambda store: store.write_text("[]")])
def test_a_damaged_cache_costs_only_time(root, cache, spoil):
    fingerprint = build_source("folder", root).fingerprint
    (store,) = cache.iterdir()
    spoil(store)
    assert build_source("folder", root).fingerprint == fingerprint


def test_the_cache_of_another_user_is_not_believed(root, monkeypatch):
    read = count_reads(monkeypatch)
    build_source("folder", root).fingerprint  # noqa: B018
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    build_source("folder", root).fingerprint  # noqa: B018
    assert len(read) == 10


def test_without_a_place_for_a_cache_there_is_a_warning(root, cache, caplog):
    cache.write_text("a file")
    assert build_source("folder", root).fingerprint
    assert contents.VARIABLE in caplog.text

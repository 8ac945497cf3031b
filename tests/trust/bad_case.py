"""What a case of bad input is made of, and the working folder that all of them start from."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from support import TINY, write_images

Content = str | bytes | None | Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    Args:
        command: Words after ``ltbench``, in the working folder; ``{fit}`` starts a training.
        says: What its message must contain: the cause, the place, the way out.
        files: Path -> what is put there first: a text, bytes, nothing (it is removed), or what a
            function makes of it.
        environment: Variables set for it.
    """

    command: str
    says: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The command line."""
        return self.command.format_map(SHORT).split()

    def put(self, desk: Path) -> None:
        """Put its files into a working folder."""
        for path, content in self.files.items():
            write(desk / path, content)


SHORT = {
    "fit": "fit --config tiny.yaml",
    "semi": "fit --config semi.yaml",
    "folder": "fit --config folder.yaml",
    "lists": "fit --config tiny.yaml --data.source lists --data.root lists",
    "inat": "fit --config tiny.yaml --data.source inaturalist2018 --data.root inat",
    "text": "fit --config text.yaml",
    "last": "run/checkpoints/last.ckpt",
}

FOLDER = {"source": "folder", "root": "images", "profile": "natural", "batch_size": 4}
PROTOCOL = {"n1": 40, "rho_l": 10, "m1": 70, "rho_u": 10, "val_per_class": 20}
SEMI = {
    "source": "digits",
    "protocol": {"class_path": "ReleasedProtocol", "init_args": PROTOCOL},
    "batch_size": 8,
    "steps_per_epoch": 2,
}


def fill(desk: Path, run: Path) -> None:
    """Write configs, images in folders and lists, annotations, texts, a finished run, a suite."""
    write(desk / "tiny.yaml", TINY)
    write_config(
        desk / "folder.yaml", data={"class_path": "LongTailDataModule", "init_args": FOLDER}
    )
    semi = {"class_path": "SemiSupervisedDataModule", "init_args": SEMI}
    model = {"class_path": "FixMatch", "init_args": {"backbone": "tiny_net"}}
    write_config(desk / "semi.yaml", data=semi, model=model)
    text = {"class_path": "TextDataModule", "init_args": {"source": "text", "root": "text"}}
    write_config(desk / "text.yaml", data=text, model=model)
    write_images(desk / "images/train", {"ant": 4, "bee": 3, "cat": 2})
    write_images(desk / "images/test", {"ant": 1, "bee": 1, "cat": 1}, seed=1)
    write_images(desk / "lists", {"all": 6})
    write(desk / "lists/train.txt", "all/000.png 0\nall/001.png 0\nall/002.png 1\nall/003.png 1\n")
    write(desk / "lists/test.txt", "all/004.png 0\nall/005.png 1\n")
    write_images(desk / "inat", {"train_val2018": 4})
    write(desk / "inat/train2018.json", json.dumps(annotations()))
    rows = "".join(f"a text about {word},{word}\n" for word in ("ants", "bees") for _ in range(30))
    write(desk / "text/train.csv", f"text,label\n{rows}")
    shutil.copytree(run, desk / "run")
    write(desk / "suite.yaml", "seeds: [0]\nrows:\n  ce: {config: tiny.yaml}\n")


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("trace",)


def annotations() -> dict[str, list[dict[str, object]]]:
    """Return what an annotation file of iNaturalist holds: four images of two categories."""
    return {
        "images": [{"id": n, "file_name": f"train_val2018/{n:03}.png"} for n in range(4)],
        "annotations": [{"image_id": n, "category_id": n % 2} for n in range(4)],
        "categories": [{"id": 0, "name": "wasp"}, {"id": 1, "name": "moth"}],
    }


def write_config(path: Path, **parts: object) -> None:
    """Write the tiny config with some of its parts replaced."""
    write(path, yaml.safe_dump({**yaml.safe_load(TINY), **parts}))


def write(path: Path, content: Content) -> None:
    """Put something at a path, as :class:`Case` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
        return
    if path.is_dir():
        shutil.rmtree(path)
    elif content is None:
        path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def folder(path: Path) -> None:
    """Make a folder where a file is expected."""
    path.unlink(missing_ok=True)
    path.mkdir()


def changed(**values: object) -> Callable[[Path], object]:
    """Change entries of a JSON file, ``a__b`` being entry b of a; None removes one."""

    def change(path: Path) -> None:
        found = json.loads(path.read_text())
        for name, value in values.items():
            *above, last = name.split("__")
            entry = reduce(getitem, above, found)
            entry.pop(last, None)
            entry |= {} if value is None else {last: value}
        path.write_text(json.dumps(found))

    return change


def arrays(**values: object) -> Callable[[Path], object]:
    """Change arrays of an ``npz`` file; None removes one."""

    def change(path: Path) -> None:
        with np.load(path) as stored:
            found = {**stored, **values}
        np.savez(path, **{k: v for k, v in found.items() if v is not None})

    return change


def link(target):
    return lambda path: (path.unlink(missing_ok=True), path.symlink_to(target))


def deep(path):
    """Write 16-bit pixels, which 8 bits cannot hold."""
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(path)


def picture(path):
    """Write an image that nothing is wrong with."""
    Image.new("RGB", (8, 8)).save(path)


def floats(path):
    """Write pixels that are floats."""
    Image.new("F", (8, 8)).save(path)


def bomb(path):
    """Write a PNG whose header claims 3.6 billion pixels."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)

"""Make a miniature iNaturalist 2018 in the official layout, from images at hand.

A few hundred "species", a natural long tail (few common, many rare, in no order), photographs of
various sizes and shapes as JPEG files below ``train_val2018/``, ``train2018.json``, and
``val2018.json`` with 3 images a species::

    python benchmarks/mini_inat.py --output DIR [--images FOLDER] [--classes 300]
    ltbench fit --config configs/ce_inat.yaml --data.root DIR

The source is a folder of images (``FOLDER/train/<class>/*`` or ``FOLDER/<class>/*``), or the digits
that scikit-learn bundles. A species is one class of it in one hue, the right way up or upside down;
no image is in both files. What is made is a function of the arguments.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ltbench.data.sources import build_source
from ltbench.data.sources.base import Source

VAL_PER_CLASS = 3
HELD_OUT = 0.1  # of the images of a source class, for validation

Pixels = npt.NDArray[np.uint8]


def class_counts(
    classes: int, largest: int, smallest: int, draws: np.random.Generator
) -> list[int]:
    """Training images of each class, from ``largest`` to ``smallest``, in no order.

    Their logarithm falls with the root of the rank, which comes close to the real ones.
    """
    place = np.linspace(0, 1, classes) ** 0.5
    counts = np.rint(largest * (smallest / largest) ** place).astype(int)
    return draws.permutation(counts).tolist()  # type: ignore[no-any-return]


def paint(
    pixels: Pixels, hue: float, upside_down: bool, draws: np.random.Generator, side: int
) -> Image.Image:
    """Turn the hue, and give an image the size and shape of a photograph.

    Args:
        pixels: (H, W, 3) RGB, or (H, W, 1) grey, which takes the hue as its colour.
        hue: Turn of the colour circle, in [0, 1).
        upside_down: Whether to turn the image by 180 degrees.
        draws: Where the shape comes from.
        side: Pixels of the longer side.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if image.mode == "L":
        saturation = Image.new("L", image.size, 200)
        bands = [Image.new("L", image.size), saturation, image]
    else:
        bands = list(image.convert("HSV").split())
    bands[0] = bands[0].point([(value + round(256 * hue)) % 256 for value in range(256)])
    image = Image.merge("HSV", bands).convert("RGB")
    if upside_down:
        image = image.transpose(Image.Transpose.ROTATE_180)
    shorter = round(side * draws.uniform(0.6, 1))
    size = (side, shorter) if draws.random() < 0.7 else (shorter, side)
    return image.resize(size, Image.Resampling.BICUBIC)


def make(
    output: Path, source: Source, classes: int, largest: int, smallest: int, side: int, seed: int
) -> None:
    """Write the tree.

    Args:
        output: Folder to write; its parents are made.
        source: Images to take.
        classes: Number of species.
        largest: Training images of the most common one.
        smallest: Training images of the rarest one.
        side: Pixels of the longer side of a photograph.
        seed: What is drawn, and so what is written, follows from it.
    """
    draws = np.random.default_rng(seed)
    labels = source.labels("train")
    pools = []
    for c in range(source.num_classes):
        members = draws.permutation(np.flatnonzero(labels == c))
        held_out = max(VAL_PER_CLASS, round(HELD_OUT * len(members)))
        pools.append({"val": members[:held_out], "train": members[held_out:]})
    variants = -(-classes // source.num_classes)
    hues = -(-variants // 2)
    categories: list[dict[str, Any]] = []
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {
        split: {"images": [], "annotations": []} for split in ("train", "val")
    }
    for c, count in enumerate(class_counts(classes, largest, smallest, draws)):
        kind, variant = c % source.num_classes, c // source.num_classes
        group = source.class_names[kind]
        categories.append({"id": c, "name": f"{group} {variant}", "supercategory": group})
        folder = Path("train_val2018") / group / str(c)
        (output / folder).mkdir(parents=True, exist_ok=True)
        for split, wanted in (("train", count), ("val", VAL_PER_CLASS)):
            pool = pools[kind][split]
            chosen = draws.choice(pool, min(wanted, len(pool)), replace=False)
            for row, pixels in zip(chosen, source.images("train", chosen), strict=True):
                name = hashlib.md5(f"{seed} {split} {c} {row}".encode()).hexdigest() + ".jpg"
                photograph = paint(
                    pixels.permute(1, 2, 0).numpy(),
                    variant % hues / hues,
                    variant >= hues,
                    draws,
                    side,
                )
                photograph.save(output / folder / name, quality=90)
                table = tables[split]
                number = len(table["images"]) + (split == "val") * 10**6
                width, height = photograph.size
                file_name = (folder / name).as_posix()
                table["images"].append(
                    {"id": number, "file_name": file_name, "width": width, "height": height}
                )
                table["annotations"].append({"id": number, "image_id": number, "category_id": c})
    for split, table in tables.items():
        info = {"description": "made by benchmarks/mini_inat.py", "year": 2018}
        content = {"info": info, **table, "categories": categories}
        (output / f"{split}2018.json").write_text(json.dumps(content))


def main(words: Sequence[str] | None = None) -> None:
    """Make the tree that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of images; default: the digits")
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--largest", type=int, default=200, help="images of the commonest species")
    parser.add_argument("--smallest", type=int, default=2, help="images of the rarest species")
    parser.add_argument("--side", type=int, default=320, help="pixels of the longer side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    source = build_source("folder" if args.images else "digits", args.images or Path())
    make(args.output, source, args.classes, args.largest, args.smallest, args.side, args.seed)


if __name__ == "__main__":
    main()

"""Generated images as data: which latents, the grid that people look at, a folder to train on."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.utils import make_grid

from ltbench import seeding
from ltbench.errors import UserError
from ltbench.escaping import cells, drawn

Labels = npt.NDArray[np.int64]

GRID_ROWS = 20
GRID_COLUMNS = 10
GAP = 1  # pixels between samples


class Latents(Dataset[dict[str, Tensor]]):
    """Inputs of a generator: sample i is a function of (seed, i), whatever the batch or rank.

    Args:
        number: How many samples.
        latent: Length of a latent vector.
        num_classes: Labels are drawn uniformly from so many classes.
    """

    def __init__(self, number: int, latent: int, num_classes: int) -> None:
        self.number = number
        self.latent = latent
        self.num_classes = num_classes

    def __len__(self) -> int:
        return self.number

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """Return ``latent`` (B, latent), ``label`` (B,) and ``index`` (B,) of these samples."""
        seed = seeding.run_seed()
        draws = [seeding.generator("cpu", seed, "sample", row) for row in rows]
        labels = [torch.randint(self.num_classes, (), generator=draw) for draw in draws]
        latents = [torch.randn(self.latent, generator=draw) for draw in draws]
        return {
            "latent": torch.stack(latents),
            "label": torch.stack(labels),
            "index": torch.as_tensor(rows),
        }

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to the 256 values that a file of them can hold."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Turn uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class Grid:
    """The first samples of each predicted class, to be drawn as one picture.

    Of more than 20 classes, 20 are shown, evenly spaced by label.

    Args:
        class_names: Names of the K classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        rows = min(len(class_names), GRID_ROWS)
        shown = np.linspace(0, len(class_names) - 1, rows).round().astype(int).tolist()
        self.names = {c: class_names[c] for c in shown}
        self.images: dict[int, list[Tensor]] = {c: [] for c in shown}

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add uint8 images (B, C, H, W) of classes (B,), as far as there is room."""
        for c, row in self.images.items():
            if len(row) < GRID_COLUMNS:
                row.extend(images[labels == c][: GRID_COLUMNS - len(row)].cpu())

    def png(self, class_counts: Labels) -> bytes:
        """Draw a row per class, with its name and its share of all samples (K,), as a PNG file."""
        blank = torch.full_like(next(filter(None, self.images.values()))[0], 255)
        tiles = [
            image
            for images in self.images.values()
            for image in [*images, *[blank] * (GRID_COLUMNS - len(images))]
        ]
        picture = make_grid(tiles, GRID_COLUMNS, GAP, pad_value=255).permute(1, 2, 0).numpy()
        rows, shares = len(self.images), class_counts / class_counts.sum()
        figure = Figure(figsize=(6, 0.5 * rows + 0.2), layout="constrained")
        axes = figure.subplots()
        axes.imshow(picture, interpolation="nearest")
        labels = [drawn(f"{name}  {shares[c]:.1%}") for c, name in self.names.items()]
        axes.set_yticks((np.arange(rows) + 0.5) * len(picture) / rows, labels)
        axes.set_xticks([])
        axes.tick_params(left=False)
        axes.set_frame_on(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")  # long names
        return buffer.getvalue()


def png(image: Tensor) -> bytes:
    """Encode one uint8 image (1 or 3, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def write_image_folder(
    root: Path,
    images: Sequence[bytes],
    labels: Labels,
    confidences: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> None:
    """Write ``root/train/<class>/<i>.png``, which the source ``folder`` reads, and a table.

    ``root/labels.csv`` has a row per image: ``image``, ``class``, ``confidence`` of the label.

    Args:
        root: The folder.
        images: N encoded images.
        labels: (N,) their classes.
        confidences: (N,) of the classifier that labelled them.
        class_names: Names of the classes.

    Raises:
        UserError: The folder is not empty.
    """
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} is not empty: choose a new folder as --output.")
    names = [class_names[c] for c in labels]
    files = [f"train/{name}/{i:06}.png" for i, name in enumerate(names)]
    for name in sorted(set(names)):
        (root / "train" / name).mkdir(parents=True)
    for file, image in zip(files, images, strict=True):
        (root / file).write_bytes(image)
    table = pd.DataFrame({"image": files, "class": names, "confidence": confidences})
    cells(table).to_csv(root / "labels.csv", index=False)

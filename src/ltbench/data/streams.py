"""Which images a training batch holds, how often, and in which views: a main stream and others.

A stream is a split, its share of a batch and its views. The entries of the main stream are those of
the batch itself; each further stream is one more entry, a batch of its own. One sampler draws for
all, so that streams may be drawn together (pairs) or apart (labelled and unlabelled images).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ltbench.data.datasets import Images
from ltbench.data.samplers import TrainingSampler
from ltbench.data.transforms.basic import BatchTransform

Views = Mapping[str, Sequence[BatchTransform]]
MAIN = ""
"""Name of the main stream."""


@dataclass(frozen=True)
class Stream:
    """Some images of each training batch.

    Attributes:
        split: Name of the split that they are from.
        views: Transforms of each view, by name; None: the views of the main stream, made in one
            call with them.
        images: Images of this stream for each one that ``batch_size`` counts.
    """

    split: str
    views: Views | None = None
    images: int = 1


@dataclass(frozen=True)
class Streams:
    """What a training batch holds.

    Attributes:
        sampler: Draws the images of all streams; its rows count through the splits of
            :attr:`streams`, one after the other.
        streams: By name; :data:`MAIN`, which has views of its own, is the first.
    """

    sampler: TrainingSampler
    streams: Mapping[str, Stream]

    @property
    def plain(self) -> bool:
        """Whether a batch holds images of one split as they are."""
        return [*self.streams] == [MAIN] and dict(self.views_of(MAIN)) == {"image": []}

    def views_of(self, name: str) -> Views:
        """Return the transforms of each view of a stream."""
        views = self.streams[name].views
        return self.views_of(MAIN) if views is None else views

    def make_views(
        self,
        batch: dict[str, Any],
        draws: torch.Generator,
        normalise: Callable[[Tensor], Tensor],
    ) -> dict[str, Any]:
        """Replace the uint8 images of a batch by its views, made on the device.

        Args:
            batch: As the loader yields it. A view starts from the entry of its name, if images
                were cropped for it when decoded, else from ``image``.
            draws: The transforms draw from it, stream by stream and view by view.
            normalise: Applied to each view.
        """
        made = {name: dict(batch if name == MAIN else batch[name]) for name in self.streams}
        raw = {name: part.pop("image", None) for name, part in made.items()}
        for name, stream in self.streams.items():
            if stream.views is None:
                continue
            group = [name]
            if name == MAIN:
                group += [other for other, joined in self.streams.items() if joined.views is None]
            for view, transforms in stream.views.items():
                parts = [made[one].get(view, raw[one]) for one in group]
                images = torch.cat(parts) if len(parts) > 1 else parts[0]
                for transform in transforms:
                    images = transform(images, draws)
                sizes = [len(part) for part in parts]
                for one, share in zip(group, torch.split(normalise(images), sizes), strict=True):
                    made[one][view] = share
        return {**made.pop(MAIN), **made}


class StreamImages(Images):
    """Batches of several streams; rows count through the images of all, one after the other.

    Args:
        parts: The images of each stream, the main one first.
    """

    def __init__(self, parts: Mapping[str, Images]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(len(images) for images in parts.values())]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitems__(self, rows: list[Any]) -> dict[str, Any]:
        """Return the main stream's batch, which holds the others by name.

        Args:
            rows: Rows, or pairs (row, number) of images to be cropped.
        """
        chosen: list[list[Any]] = [[] for _ in self.parts]
        for row in rows:
            place, *number = row if isinstance(row, tuple) else (row,)
            part = bisect_right(self.starts, place) - 1
            place -= self.starts[part]
            chosen[part].append((place, *number) if number else place)
        batches = zip(self.parts.items(), chosen, strict=True)
        loaded = {name: images.__getitems__(rows) for (name, images), rows in batches}
        return {**loaded.pop(MAIN), **loaded}

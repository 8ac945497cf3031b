"""How far attention looks: mean attention distance by head, and rollout onto images.

Figures of Rangwani et al. 2024, DeiT-LT, arXiv 2404.02900.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ltbench import escaping
from ltbench.analysis import vit
from ltbench.analysis.result import BLUE, GREY, Result, figure
from ltbench.analysis.subject import Subject
from ltbench.data.sources.decoding import decode
from ltbench.data.sources.folder import image_files
from ltbench.methods.deit_lt.distillation import resize
from ltbench.models.distilled_vit import attention_maps

SHOWN = 6  # images of the rollout picture


def analyse(
    subject: Subject,
    split: str = "test",
    images: int | None = 256,
    batch_size: int = 32,
    pictures: Path | None = None,
) -> Result:
    """Measure the distance of every head, and draw the rollout of some images.

    Args:
        subject: A vision transformer.
        split: Which split.
        images: Number of images at most.
        batch_size: Images at a time.
        pictures: Folder of images to draw the rollout of; default: one image of each of some
            classes, from the most frequent to the rarest.
    """
    net = vit.transformer(subject)
    rows = subject.rows(split, limit=images)
    prefix, (high, wide) = net.num_prefix_tokens, net.patch_embed.grid_size
    between = patch_distances(high, wide, net.patch_embed.patch_size[0]).to(subject.device)
    total = torch.zeros(len(net.blocks), net.blocks[0].attn.num_heads, dtype=torch.float64)
    for seen in vit.images(subject, split, rows, batch_size):
        for block, attention in enumerate(attention_maps(net, seen)):
            total[block] += mean_distance(attention, between, prefix).double().sum(0).cpu()
    distances = (total / len(rows)).sort(1).values.numpy()
    uniform = float(between.mean())
    names, shown = _chosen(subject, split, pictures)
    onto = rollout(attention_maps(net, shown))[:, : len(vit.tokens(net)), prefix:]
    onto = onto.reshape(*onto.shape[:2], high, wide).cpu()
    drawn = _unnormalised(subject, shown)
    means = distances.mean(1)
    summary = [
        (
            f"block {i + 1}",
            f"{row[0]:.1f} to {row[-1]:.1f} px over the heads, mean {row.mean():.1f}",
        )
        for i, row in enumerate(distances)
    ]
    return Result(
        title=f"Attention: mean distance of each head ({len(rows)} {split} images)",
        summary=[
            ("mean over heads, first and last block", f"{means[0]:.1f} px, {means[-1]:.1f} px"),
            ("uniform attention would be", f"{uniform:.1f} px"),
            *summary,
        ],
        values={"distance_px": distances.tolist(), "uniform_px": uniform, "images": len(rows)},
        figures={
            "": _distances(distances, uniform),
            "rollout": _rollouts(names, drawn, onto.numpy(), vit.tokens(net)),
        },
    )


def patch_distances(high: int, wide: int, patch: int) -> Tensor:
    """Return the distances between the centres of patches in pixels, (high * wide,) squared."""
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    places = torch.stack([rows, columns], -1).reshape(-1, 2).float() * patch
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def mean_distance(attention: Tensor, between: Tensor, prefix: int) -> Tensor:
    """Return the mean distance of attention, (B, heads): Dosovitskiy et al., arXiv 2010.11929.

    Of attention (B, heads, N, N), that to the class tokens, which come first (``prefix`` of them),
    is left out, and the rest of each row made to sum to 1. Distances between patches are (P, P).
    """
    patches = attention[:, :, prefix:, prefix:]
    looked = (patches * between).sum(-1) / patches.sum(-1)
    return looked.mean(-1)


def rollout(maps: list[Tensor]) -> Tensor:
    """Follow attention through all blocks, (B, N, N): Abnar and Zuidema 2020, arXiv 2005.00928.

    Each block passes on the mean over its heads and, through the residual, as much of itself. The
    maps are (B, heads, N, N) per block, first to last, with rows summing to 1.
    """
    one = torch.eye(maps[0].shape[-1], device=maps[0].device)
    followed = one.expand(len(maps[0]), -1, -1)
    for attention in maps:
        step = (attention.mean(1) + one) / 2
        followed = step / step.sum(-1, keepdim=True) @ followed
    return followed


def _chosen(subject: Subject, split: str, folder: Path | None) -> tuple[list[str], Tensor]:
    """Return names and normalised images, as the network sees them."""
    side, data = vit.transformer(subject).patch_embed.img_size[0], subject.data
    if folder is not None:
        paths = image_files(folder)[:SHOWN]
        decoded = [decode(p, data.channels, data.image_size, data.source.decoding) for p in paths]
        normalised = data.normalise(torch.stack(decoded).to(subject.device))
        return [path.name for path in paths], resize(normalised, side, antialias=True)
    order = subject.by_frequency(split)
    some = dict.fromkeys(order[i] for i in np.linspace(0, len(order) - 1, SHOWN).astype(int))
    rows = np.array([subject.rows(split, c, 1)[0] for c in some])
    (images,) = vit.images(subject, split, rows, len(rows))
    return [subject.classes.names[c] for c in some], images


def _unnormalised(subject: Subject, images: Tensor) -> NDArray[np.float32]:
    """Return images as matplotlib takes them, (B, H, W, 1 or 3) in [0, 1]."""
    source = subject.data.source
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (source.mean, source.std))
    shown = (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return np.asarray(shown, dtype=np.float32)


def _distances(distances: NDArray[np.float64], uniform: float) -> Figure:
    drawn, ((axes,),) = figure(width=5.4, height=3.4)
    blocks, heads = distances.shape
    places = np.repeat(np.arange(1, blocks + 1), heads)
    axes.scatter(places, distances.ravel(), color=BLUE, s=18, alpha=0.7, label="a head")
    axes.plot(np.arange(1, blocks + 1), distances.mean(1), color=BLUE, label="mean over heads")
    axes.axhline(uniform, color=GREY, linestyle="--", label="uniform attention")
    axes.set(xlabel="block", ylabel="mean attention distance (px)")
    axes.set_xticks(np.arange(1, blocks + 1))
    axes.set_ylim(0, 1.1 * max(uniform, distances.max()))
    axes.legend(frameon=False, fontsize=8)
    return drawn


def _rollouts(
    names: list[str],
    images: NDArray[np.float32],
    onto: NDArray[np.float32],
    tokens: tuple[str, ...],
) -> Figure:
    drawn, panels = figure(1 + len(tokens), len(names), width=1.6, height=1.7)
    high, wide = images.shape[1:3]
    for column, (name, image) in enumerate(zip(names, images, strict=True)):
        panels[0][column].imshow(image.squeeze(), cmap="gray")
        panels[0][column].set_title(escaping.drawn(name), fontsize=9)
        for row, token in enumerate(tokens, 1):
            axes = panels[row][column]
            axes.imshow(image.mean(-1), cmap="gray")
            axes.imshow(
                onto[column, row - 1], cmap="viridis", alpha=0.65, interpolation="bilinear",
                extent=(-0.5, wide - 0.5, high - 0.5, -0.5),
            )  # fmt: skip
            if column == 0:
                axes.set_ylabel(token)
        for row in range(1 + len(tokens)):
            panels[row][column].set(xticks=[], yticks=[])
            panels[row][column].spines[:].set_visible(False)
    return drawn

"""How many directions the class tokens use, block by block: the feature rank of DIST and CLS.

Figure of Rangwani et al. 2024, DeiT-LT, arXiv 2404.02900.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ltbench import escaping
from ltbench.analysis import vit
from ltbench.analysis.result import COLOURS, Result, figure
from ltbench.analysis.subject import Subject
from ltbench.errors import UserError
from ltbench.models.distilled_vit import block_tokens


def analyse(
    subject: Subject,
    split: str = "test",
    images: int | None = 2000,
    batch_size: int = 64,
    threshold: float = 0.99,
    centre: bool = False,
) -> Result:
    """Measure the rank of each class token after each block.

    Args:
        subject: A vision transformer.
        split: Which split.
        images: Number of images at most; the rank cannot exceed it.
        batch_size: Images at a time.
        threshold: Share of the energy that the counted directions hold, in (0, 1].
        centre: Subtract the mean over the images first.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold}: use a share of the energy in (0, 1].")
    net = vit.transformer(subject)
    names = vit.tokens(net)
    rows = subject.rows(split, limit=images)
    width = net.embed_dim
    gram = torch.zeros(len(net.blocks), len(names), width, width, dtype=torch.float64)
    total = torch.zeros(len(net.blocks), len(names), width, dtype=torch.float64)
    for seen in vit.images(subject, split, rows, batch_size):
        tokens = block_tokens(net, seen)[:, :, : len(names)].double().cpu()
        gram += torch.einsum("lbtd,lbte->ltde", tokens, tokens)
        total += tokens.sum(1)
    if centre:
        gram -= torch.einsum("ltd,lte->ltde", total, total) / len(rows)
    ranks = {
        name: [feature_rank(block[t], threshold) for block in gram] for t, name in enumerate(names)
    }
    return Result(
        title=f"Feature rank of the class tokens ({len(rows)} {split} images, "
        f"{100 * threshold:g} % of the energy)",
        summary=[
            (f"{name}: first, largest, last block", f"{r[0]}, {max(r)}, {r[-1]} of {width}")
            for name, r in ranks.items()
        ],
        values={"rank": ranks, "width": width, "images": len(rows), "centred": centre},
        figures={"": _picture(ranks)},
    )


def feature_rank(gram: Tensor, threshold: float) -> int:
    """Return the smallest k whose largest k squared singular values hold a share of their sum.

    They are the eigenvalues of ``gram``, X'X of the features X, (D, D) float64.
    """
    energy = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).cumsum(0)
    reached = energy >= threshold * energy[-1] * (1 - 1e-12)
    return int(reached.long().argmax()) + 1


def _picture(ranks: Mapping[str, Sequence[int]]) -> Figure:
    drawn, ((axes,),) = figure(width=5.4, height=3.4)
    for (name, values), colour, line in zip(ranks.items(), COLOURS, ("o-", "s--"), strict=False):
        axes.plot(
            np.arange(1, len(values) + 1), values, line, color=colour, label=escaping.drawn(name)
        )
    axes.set(xlabel="block", ylabel="feature rank")
    axes.set_xticks(np.arange(1, len(next(iter(ranks.values()))) + 1))
    axes.set_ylim(0, 1.1 * max(max(values) for values in ranks.values()))
    axes.legend(frameon=False)
    return drawn

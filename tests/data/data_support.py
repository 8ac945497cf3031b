"""What the tests of data share: a seeded generator, and a trainer that a data module can ask."""

from types import SimpleNamespace

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trainer(training=True, world=1, rank=0, step=0, device="cpu", method=None):
    """What a data module reads of a trainer: where it is, and which method it trains."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    return SimpleNamespace(
        training=training,
        world_size=world,
        global_rank=rank,
        global_step=step,
        lightning_module=method,
        fit_loop=SimpleNamespace(epoch_progress=progress),
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )

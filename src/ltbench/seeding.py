"""Randomness as a function of (seed, rank, step), never of what happened before.

A resumed run then equals an uninterrupted one without saving generator states.
"""

import os
import zlib

import numpy as np
import torch


def run_seed() -> int:
    """Return the seed of this run: that of the last ``lightning.seed_everything``, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive(seed: int, *key: int | str) -> int:
    """Mix a seed with a key into an independent 63-bit seed.

    Args:
        seed: The run's seed, non-negative.
        *key: What the seed is for, for example ``("augment", rank, step)``; strings are hashed.
    """
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's own generators of the host and of a device.

    ``torch.manual_seed`` seeds those of all kinds of devices; for each kind that is not in use it
    records the stack, which takes milliseconds in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def generator(device: torch.device | str, seed: int, *key: int | str) -> torch.Generator:
    """Return a fresh generator on ``device`` seeded by :func:`derive`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *key))

"""Which GPUs a process may use, known without torch, and that one that was asked for is there."""

import os
import re
import subprocess
from collections.abc import Mapping

from ltbench.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LISTED = re.compile(r"^(GPU|\s+MIG)\b.*\(UUID: ([^)\s]+)\)\s*$")


def named(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """Return the ids in ``CUDA_VISIBLE_DEVICES``, or None if it is not set; -1 ends the list."""
    ids = environment.get(VISIBLE)
    if ids is None:
        return None
    named = [gpu.strip() for gpu in ids.split(",")]
    return [gpu for gpu in named[: named.index("-1") if "-1" in named else None] if gpu]


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the ids of the GPUs, or slices of GPUs, that this process may use.

    Raises:
        UserError: The driver is here but does not say which there are.
    """
    ids = named(environment)
    if ids is not None:
        return ids
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, env={**environment}, check=False
        )
    except OSError:  # no driver
        return []
    if listed.returncode and "No devices" not in listed.stdout:
        reason = (listed.stdout + listed.stderr).strip().splitlines()
        raise UserError(
            f"nvidia-smi -L fails ({reason[0] if reason else listed.returncode}). Repair the "
            f"driver, or use no GPU: {VISIBLE}= (empty)."
        )
    return of_list(listed.stdout)


def of_list(text: str) -> list[str]:
    """Return the ids in what ``nvidia-smi -L`` prints: the slices of a divided GPU, or the GPU.

    They are UUIDs, which mean the same device in whatever order CUDA counts.
    """
    gpus: list[list[str]] = []  # a GPU, then its slices
    for line in text.splitlines():
        if listed := _LISTED.match(line):
            kind, uuid = listed[1].strip(), listed[2]
            if kind == "GPU":
                gpus.append([uuid])
            else:
                gpus[-1].append(uuid)
    return [uuid for gpu in gpus for uuid in gpu[1:] or gpu]


def require_named(found: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to go on without GPUs that ``CUDA_VISIBLE_DEVICES`` names, and so on the CPU.

    Args:
        found: Number of GPUs that torch can use.
        environment: Of this process.

    Raises:
        UserError: There are fewer.
    """
    ids = named(environment) or []
    slices = any(gpu.startswith("MIG") for gpu in ids)  # of which CUDA gives a process only one
    wanted = 1 if slices else len(ids)
    if found < wanted:
        raise UserError(
            f"{VISIBLE} names {', '.join(ids)}, but torch can use "
            f"{found or 'none'} of them: see nvidia-smi. For the CPU, set it to an empty text."
        )

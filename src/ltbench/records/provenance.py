"""Which code made a number: versions of packages, and the state of the checkout."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    names = ("ltbench", "torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def git_state(file: Path) -> dict[str, Any]:
    """Return the commit that ``file`` belongs to and whether its folder has changed since.

    A file that is new in that folder is a change. Both are None for a file that no repository
    tracks, such as that of an installed package, even inside the checkout of another project.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if not git("ls-files", file.name):
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", ".")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}

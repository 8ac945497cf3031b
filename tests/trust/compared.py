"""Run folders, compared to the last bit."""

import numpy as np
import torch
from support import assert_same

from ltbench.records import read_record

TIMES = ("wall_seconds", "images_per_second", "peak_memory_bytes", "git")
KEPT = {".ckpt", ".npz", ".png"}
SITTINGS = {"callbacks", "loops"}  # of a checkpoint: what tells how often a run was begun


def only_run(home):
    (folder,) = (path for path in (home / "runs").iterdir() if path.name != "reference_features")
    return folder


def assert_same_run(one, other):
    """Compare two run folders: checkpoints, record but for times, curves, traces, predictions."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.suffix in KEPT}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.suffix in KEPT}
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (
        {k: v for k, v in read_record(folder / "record.json").items() if k not in TIMES}
        for folder in (one, other)
    )
    assert first["status"] == "done"
    assert_same(first, second)
    for name in names:
        if name.suffix == ".ckpt":
            a, b = (torch.load(folder / name, weights_only=True) for folder in (one, other))
            assert a.keys() == b.keys()
            for key in a.keys() - SITTINGS:
                assert_same(a[key], b[key], f"{name}/{key}")
        elif name.suffix == ".npz":
            with np.load(one / name) as a, np.load(other / name) as b:
                assert set(a.files) == set(b.files)
                assert all(np.array_equal(a[n], b[n], equal_nan=True) for n in a.files)

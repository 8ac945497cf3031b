"""How long does each command take to start, against the import of torch alone?

Each is a process of its own, in turns. ``fit`` is timed up to its first step, on the handwritten
digits, against a process that imports torch, lightning and timm and builds the same network and the
first batch of the same data. ``validate``, ``test`` and ``predict`` start as ``fit`` does.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

from timing import HERE, Candidate, Parser, Row, report, take_turns

from ltbench.bench.run import suite as suites
from ltbench.bench.run.jobs import Store

CONFIGS = HERE.parents[1] / "configs"
CONFIG = CONFIGS / "ce_digits.yaml"
LIGHT = {
    "ltbench --help": ("--help",),
    "ltbench list": ("list",),
    "ltbench show ce_cifar10": ("show", "ce_cifar10"),
    "ltbench bench status cifar10_lt": ("bench", "status", "cifar10_lt"),
}
HEAVY = {
    "ltbench fit --help": ("fit", "--help"),
    "ltbench data": ("data", "--config", str(CONFIG)),
    "ltbench leaderboard --help": ("leaderboard", "--help"),
    "ltbench analyze hessian --help": ("analyze", "hessian", "--help"),
}
FIRST = "ltbench fit, up to its first step"
IMPORTS = "import torch, lightning, timm"
BUILD = f"""
{IMPORTS}
from ltbench.data.datamodule import LongTailDataModule
from ltbench.models import build_backbone
build_backbone("resnet32_cifar", 10, 1)
data = LongTailDataModule("digits")
data.setup()
next(iter(data.train_dataloader()))
"""
FIRST_STEP = """
import os, sys
from ltbench import cli
from ltbench.methods.base import Method
Method.on_train_batch_start = lambda *_: os._exit(0)
cli.main(["fit", "--config", sys.argv[1], "--trainer.default_root_dir", sys.argv[2]])
"""


@contextmanager
def workplace() -> Iterator[Path]:
    """Open a working folder with configs, suites and a suite that was begun."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        home = Path(folder)
        for name in ("configs", "benchmarks"):
            (home / name).symlink_to(CONFIGS.parent / name)
        Store(home / "runs/bench").save(suites.plan(suites.read(suites.find("cifar10_lt"))))
        yield home


def process(*words: str) -> Candidate:
    """Return the run of a process in the working folder."""
    return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    args = Parser(__file__, __doc__, repeats=3).parse_args(words)
    commands = {
        "import torch": process("-c", "import torch"),
        IMPORTS: process("-c", IMPORTS),
        "imports, network and data": process("-c", BUILD),
        FIRST: process("-c", FIRST_STEP, str(CONFIG), "runs"),
        **{name: process("-m", "ltbench", *rest) for name, rest in {**LIGHT, **HEAVY}.items()},
    }
    args.output = args.output.absolute()
    with workplace():
        rounds = take_turns(commands, args.repeats)
    answer: list[Row] = [
        rounds.row(name, lambda s, name=name: s[name], "< 0.5" if name in LIGHT else "", "s")
        for name in (*LIGHT, *HEAVY, "import torch", IMPORTS, FIRST)
    ]
    answer.insert(
        len(LIGHT),
        rounds.row(
            f"time of {FIRST} / of imports, network and data",
            lambda s: s[FIRST] / s["imports, network and data"],
            "<= 1.3",
        ),
    )
    answer += [
        rounds.row(
            f"time of {name} / of import torch", lambda s, name=name: s[name] / s["import torch"]
        )
        for name in LIGHT
    ]
    report(args, answer, rounds, unit="starts/s")


if __name__ == "__main__":
    main()

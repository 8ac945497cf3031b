"""How is a machine best divided among jobs: one at a time, a job a core, or several on a GPU?

Each job is a process of its own, as `ltbench bench run` starts it (`--jobs`, and `--pack` for those
that share a GPU), which trains a ResNet-32 on 128 images of 32 pixels: noise, in bf16, without the
trainer. On CPUs, glibc's large memory pages are tried beside; jobs get them where there are any.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

import torch
from timing import HERE, Parser, Rounds, report

from ltbench.bench.run.launchers import LARGE_PAGES

# Takes so many steps whenever it is told to.
JOB = """
import sys
import torch
from sam import step_of
from ltbench.optim.sam import Plain
device = torch.device(sys.argv[1])
step = step_of(Plain(), int(sys.argv[2]), device, autocast=True)
for line in sys.stdin:
    for _ in range(int(line)):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("done", flush=True)
"""


class Jobs:
    """Jobs side by side that wait until they are told to train.

    Args:
        number: How many.
        words: Device and batch size.
        environment: What is added to this process's own.
    """

    def __init__(self, number: int, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", JOB, *words],
                cwd=HERE,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(number)
        ]

    def __enter__(self) -> Self:
        """Return them."""
        return self

    def train(self, steps: int) -> None:
        """Let each take so many steps, all at once, and wait for the last."""
        for process in self.processes:
            print(steps, file=process.stdin, flush=True)
        for process in self.processes:
            if not process.stdout or process.stdout.readline() != "done\n":
                raise RuntimeError("a job has died; what it said is above")

    def __exit__(self, *error: object) -> None:
        """End them."""
        for process in self.processes:
            process.communicate()


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--steps", type=int, default=12, help="steps of a turn, each job")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pack", type=int, nargs="*", default=(2, 4, 8), help="jobs on a GPU")
    args = parser.parse_args(words)
    device, cores = "cuda" if torch.cuda.is_available() else "cpu", torch.get_num_threads()
    whole, one = {"OMP_NUM_THREADS": str(cores)}, {"OMP_NUM_THREADS": "1"}
    alone = f"one job, {cores} threads" if device == "cpu" else "one job"
    divisions: dict[str, tuple[int, Mapping[str, str]]] = {alone: (1, whole)}
    if device == "cpu":
        divisions["a job a core"] = cores, one
        divisions["a job a core, large pages"] = cores, one | LARGE_PAGES
    else:
        divisions |= {f"{n} jobs on the GPU": (n, one) for n in args.pack}
    given = [device, str(args.batch_size)]
    with ExitStack() as stack:
        jobs = {
            name: stack.enter_context(Jobs(number, given, added))
            for name, (number, added) in divisions.items()
        }
        rounds = Rounds(clocks=("wall",))  # jobs that wait have not told their processor time
        for repeat in range(1 + args.repeats):
            for name, each in jobs.items():
                images = len(each.processes) * args.steps * args.batch_size
                rounds.turn(name, partial(each.train, args.steps), work=images)
            rounds.close(keep=repeat > 0)
    report(
        args,
        rounds.gains(alone),
        rounds,
        unit="images/s",
        network="resnet32_cifar",
        batch_size=args.batch_size,
        precision="bf16-mixed",
    )


if __name__ == "__main__":
    main()

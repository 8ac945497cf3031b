"""Everything that only a GPU can tell, in one go of less than ten minutes: `make gpu-check`.

The tests marked `gpu`, then the scripts that answer a question of a GPU; their JSON files go to
`on_gpu/`, and into a section of the page. Each part is a process of its own with a limit on its
time: one that fails costs that part alone, and is told at the end. `--rehearse` tries every part on
the CPU at a smoke size and without limits, and writes nothing that stays.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tables
import torch
from timing import HERE

TESTS = HERE.parents[1] / "tests"


@dataclass(frozen=True)
class Part:
    """A script, or the tests.

    Args:
        name: Of its JSON file.
        script: Its file name; the tests have none.
        words: Its options.
        smoke: Its options in a rehearsal.
        limit: Seconds that it may take.
    """

    name: str
    script: str
    words: str
    smoke: str
    limit: int

    def command(self, folder: Path, rehearse: bool) -> list[str]:
        """Return the command line; ``folder`` takes the JSON file."""
        words = (self.smoke if rehearse else self.words).split()
        if not self.script:
            return [sys.executable, "-m", "pytest", str(TESTS), *words]
        output = str(folder / f"{self.name}.json")
        return [sys.executable, str(HERE / self.script), *words, "--output", output]


TESTED = "-q -m gpu --continue-on-collection-errors"
QUICK = "--repeats 1 --steps 1 --batch-size 4"
TRAINED, FP32 = "--configs ce_cifar10 vssam_cifar10", "--precision 32-true"
PARTS = (
    Part("tests", "", TESTED, f"{TESTED} --rehearse", 180),
    Part("graphs", "graphs.py", "", QUICK, 150),
    Part("training_bf16", "training.py", TRAINED, f"{TRAINED} {QUICK}", 80),
    Part("training_fp32", "training.py", f"{TRAINED} {FP32}", f"{TRAINED} {FP32} {QUICK}", 80),
    Part("jobs", "jobs.py", "", QUICK, 80),
)


def take(part: Part, folder: Path, rehearse: bool) -> str:
    """Run a part; return what went wrong, or an empty text."""
    command = part.command(folder, rehearse)
    (folder / f"{part.name}.json").unlink(missing_ok=True)  # a failure leaves no older result
    print(f"\n=== {part.name}, at most {part.limit} s: {' '.join(command)}", flush=True)
    with subprocess.Popen(command, cwd=folder, start_new_session=True) as process:
        try:
            code = process.wait(None if rehearse else part.limit)
        except BaseException as error:  # Ctrl-C too: none of its processes is left behind
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"took more than {part.limit} s"
    if code:
        return f"exit code {code}"
    if part.script and not (folder / f"{part.name}.json").is_file():
        return "left no result"
    return ""


def main(words: Sequence[str] | None = None) -> None:
    """Take every part, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU; writes nothing")
    parser.add_argument("--parts", nargs="*", choices=[part.name for part in PARTS])
    args = parser.parse_args(words)
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("no GPU here that torch can use; --rehearse tries every part on the CPU")
    began = time.monotonic()
    wanted = [part for part in PARTS if args.parts is None or part.name in args.parts]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.rehearse else tables.ON_GPU
        folder.mkdir(exist_ok=True)
        failures = {part.name: take(part, folder, args.rehearse) for part in wanted}
        page = tables.page(HERE, folder)
    if not args.rehearse:
        (HERE / "README.md").write_text(page)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    for name, reason in failures.items():
        print(f"{name}: {reason or 'done'}")
    if any(failures.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

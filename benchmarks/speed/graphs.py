"""What do precision, compiling and CUDA graphs give a small network, in images a second and memory?

The network and batch of `sam.py`, a plain step, in float32 and in bf16, each as

* `eager`: as it is;
* `compiled`: `--model.compile true`;
* `graph`: the whole step captured once as a CUDA graph and replayed, which is what a step would
  cost that the host never holds up. The project has no such switch.

On a GPU the peak is that of a step, weights and gradients included. Without one `graph` is the
eager step, and the peak that of the whole process.
"""

from collections.abc import Sequence

import torch
from sam import step_of
from timing import Candidate, Parser, Rounds, Row, peak_memory, report, take_turns

from ltbench.optim.sam import Plain

WARM_UP = 3  # steps before a capture, as torch asks for
BASE = "32-true, eager"


class Replay:
    """A CUDA graph of a step, with the step, whose weights it uses where they lie."""

    def __init__(self, step: Candidate, graph: "torch.cuda.CUDAGraph") -> None:
        self.step, self.graph = step, graph

    def __call__(self) -> None:
        """Take the step."""
        self.graph.replay()


def captured(step: Candidate) -> Replay:
    """Return a step that replays a CUDA graph of another one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return Replay(step, graph)


def made(precision: str, way: str, batch: int, device: torch.device) -> tuple[Candidate, float]:
    """Return a step, and the bytes that it holds at most, once it has been taken a few times."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    autocast, compiled = precision == "bf16-mixed", way == "compiled"
    step = step_of(Plain(), batch, device, autocast, compiled=compiled)
    if way == "graph" and on_gpu:
        step = captured(step)
    for _ in range(WARM_UP):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    return step, torch.cuda.max_memory_allocated() - before if on_gpu else peak_memory()


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates: dict[str, Candidate] = {}
    peaks = []
    for precision in ("32-true", "bf16-mixed"):
        for way in ("eager", "compiled", "graph"):
            name = f"{precision}, {way}"
            candidates[name], peak = made(precision, way, args.batch_size, device)
            peaks.append(Row(f"peak memory, {name}", {"wall": peak / 2**20}, unit="MiB"))
    rounds = take_turns(
        candidates, args.repeats, args.steps, args.batch_size, Rounds(device=device)
    )
    report(
        args,
        [*rounds.gains(BASE), *peaks],
        rounds,
        unit="images/s",
        network="resnet32_cifar",
        batch_size=args.batch_size,
    )


if __name__ == "__main__":
    main()

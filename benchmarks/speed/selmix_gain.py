"""How does the gain of all class pairs grow with the classes, over the matrix products it needs?

Gains and shares of all pairs, for several numbers of classes, take turns with the matrix products
that they contain, on the same random numbers; and the memory that they take beyond their inputs. A
process of its own for each number of classes keeps the peaks apart.
"""

import resource
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from timing import Parser, Rounds, Row, peak_memory, report, take_turns

from ltbench.methods.selmix.gain import pair_gains, selective, smooth

FEATURES = {10: 128, 100: 128, 1000: 2048, 8142: 2048}
MILLISECONDS = {10: "< 1", 100: "< 20"}
OVER_PRODUCTS = {1000: "<= 1.5"}
GIBIBYTES = {1000: "< 1", 8142: "< 4"}
ONCE = 1000  # classes beyond which there is one turn, without a warm-up


def gains(classes: int, features: int, threads: int, repeats: int) -> tuple[Rounds, int]:
    """Measure gains and shares for one number of classes, and bytes beyond the inputs."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(classes, features, generator=draw).abs_()
    w = torch.randn(classes, features, generator=draw) / features**0.5
    slopes = torch.randn(classes, classes, generator=draw, dtype=torch.float64)
    bias = torch.zeros(classes)

    def ours() -> None:
        smooth(selective(pair_gains(z, w, bias, slopes)))

    def products() -> None:
        wide = z.double()
        square = wide @ wide.T @ slopes
        for _ in range(3):
            torch.mm(square, slopes)
        wide @ w.double().T

    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    rounds = Rounds(f"{classes:,} classes")
    rounds.turn("gains", ours)
    extra = max(0, peak_memory() - held)
    rounds.turn("products", products)
    rounds.close(keep=classes > ONCE)
    if classes <= ONCE:
        calls = min(1000, max(1, 10**7 // classes**3))  # so that short ones can be timed
        take_turns({"gains": ours, "products": products}, repeats, calls, rounds=rounds)
    return rounds, extra


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--classes", type=int, nargs="*", default=sorted(FEATURES))
    args = parser.parse_args(words)
    answer: list[Row] = []
    measured = []
    for classes in args.classes:
        features = FEATURES.get(classes, 2048)
        with get_context("spawn").Pool(1) as pool:
            job = (classes, features, torch.get_num_threads(), args.repeats)
            rounds, extra = pool.apply(gains, job)
        measured.append(rounds)
        title = f"{classes:,} classes, {features:,} features: "
        answer += [
            rounds.row(
                f"{title}gains and shares",
                lambda s: 1e3 * s["gains"],
                MILLISECONDS.get(classes, ""),
                "ms",
            ),
            rounds.row(
                f"{title}time / of the products that they contain",
                lambda s: s["gains"] / s["products"],
                OVER_PRODUCTS.get(classes, ""),
            ),
            Row(
                f"{title}memory beyond the inputs",
                {"wall": extra / 2**30},
                GIBIBYTES.get(classes, ""),
                "GiB",
            ),
        ]
    report(args, answer, *measured, precision="float64")


if __name__ == "__main__":
    main()

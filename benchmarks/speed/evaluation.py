"""What does the metric collector add to an evaluation pass, in time and memory, as classes grow?

A forward pass over one cached batch (``pass``), the same with the collector that counts it
(``counted``), the collector alone (``collector``), and with what it computes at the end of an
evaluation (``computed``) take turns: ResNet-32 at 32 pixels for 10 classes, ResNet-50 at 224 for
the 1,000 of ImageNet-LT and the 8,142 of iNaturalist-2018.

Two passes differ by some per cent from one moment to the next, far more than the collector takes of
one; so the goal is on the collector alone, and a counted pass stands beside.
"""

from collections.abc import Sequence

import torch
from timing import Candidate, Parser, Rounds, Row, report, take_turns

from ltbench.metrics.collector import LongTailMetrics
from ltbench.models import build_backbone

# Classes -> network, side of the images in pixels, images of a batch.
CASES = {
    10: ("resnet32_cifar", 32, 500),
    1000: ("resnet50", 224, 32),
    8142: ("resnet50", 224, 32),
}


def candidates(
    classes: int, network: str, side: int, batch: int, device: torch.device, autocast: bool
) -> tuple[dict[str, Candidate], LongTailMetrics]:
    """Return the passes, and the collector."""
    net = build_backbone(network, classes).to(device, memory_format=torch.channels_last).eval()
    images = torch.randn(batch, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), device=device)
    metrics = LongTailMetrics(classes, torch.ones(classes, dtype=torch.long)).to(device)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return net(images)

    logits = forward()

    @torch.inference_mode()
    def collect(scores: torch.Tensor = logits) -> None:
        metrics.update(scores, labels)

    def computed() -> None:
        collect()  # without which the last result would be told again
        metrics.compute()

    passes = {
        "pass": forward,
        "counted": lambda: collect(forward()),
        "collector": collect,
        "computed": computed,
    }
    return passes, metrics


def state_bytes(metrics: LongTailMetrics) -> int:
    """Return the size of what a collector keeps between batches."""
    return sum(value.nbytes for value in metrics.metric_state.values())


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--classes", type=int, nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--batch-size", type=int, help="default: 500 small images, 32 large ones")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    args = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answer: list[Row] = []
    measured = []
    for classes in args.classes:
        network, side, batch = CASES[classes]
        batch = args.batch_size or batch
        autocast = args.precision == "bf16-mixed"
        passes, metrics = candidates(classes, network, side, batch, device, autocast)
        title = f"{classes:,} classes"
        rounds = take_turns(passes, args.repeats, 1, batch, Rounds(title, device))
        answer += [
            rounds.row(
                f"{title}: time of the collector / of the pass",
                lambda s: s["collector"] / s["pass"],
                "<= 0.01",
            ),
            rounds.row(
                f"{title}: time of a counted pass / of the pass",
                lambda s: s["counted"] / s["pass"],
            ),
            rounds.row(
                f"{title}: all metrics, once an evaluation",
                lambda s, batch=batch: 1e3 * batch * (s["computed"] - s["collector"]),
                unit="ms",
            ),
            Row(f"{title}: state", {"wall": state_bytes(metrics) / classes}, unit="bytes a class"),
        ]
        measured.append(rounds)
    report(args, answer, *measured, unit="images/s", precision=args.precision)


if __name__ == "__main__":
    main()

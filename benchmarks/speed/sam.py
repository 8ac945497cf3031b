"""What does a SAM step cost over a plain step?

The network and batch are those of ``configs/vssam_cifar10.yaml`` (ResNet-32, 128 images of 32
pixels), without the trainer: forward, cross-entropy, backward, SGD. The images are noise.
"""

from collections.abc import Sequence

import torch
from timing import Candidate, Parser, Rounds, report, take_turns
from torch.nn import functional as F

from ltbench.models import build_backbone
from ltbench.optim.sam import SAM, GradientRule, Plain
from ltbench.optim.step import Step


def step_of(
    rule: GradientRule,
    batch: int,
    device: torch.device,
    autocast: bool,
    layout: torch.memory_format = torch.channels_last,
    compiled: bool = False,
) -> Candidate:
    """Return a step that follows the gradient of a rule."""
    net = build_backbone("resnet32_cifar", 10).to(device, memory_format=layout)
    if compiled:
        net.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=layout)
    labels = torch.randint(10, (batch,), device=device)
    noise = torch.Generator(device)

    def loss_of(part: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return F.cross_entropy(net(part["image"]), part["label"])

    def take_step() -> None:
        rule.backward(Step(net, loss_of, {"image": images, "label": labels}, batch, 0, 1, noise))
        optimizer.step()

    return take_step


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=11)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    args = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rules = {"plain": Plain(), "SAM": SAM(rho=0.05)}
    where = (args.batch_size, device, args.precision == "bf16-mixed")
    rounds = take_turns(
        {name: step_of(rule, *where) for name, rule in rules.items()},
        args.repeats,
        args.steps,
        args.batch_size,
        Rounds(device=device),
    )
    title = "time of a SAM step / of a plain step"
    report(
        args,
        [rounds.row(title, lambda s: s["SAM"] / s["plain"], "<= 2.02")],
        rounds,
        unit="images/s",
        network="resnet32_cifar",
        batch_size=args.batch_size,
        precision=args.precision,
    )


if __name__ == "__main__":
    main()

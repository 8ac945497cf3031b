"""What do channels-last, bf16 and compiling gain, one after the other?

The network and batch of `sam.py`, a plain step. Channels-last is always on;
`--trainer.precision bf16-mixed` and `--model.compile true` round otherwise and are switches.
"""

from collections.abc import Sequence

import torch
from sam import step_of
from timing import Parser, Rounds, report, take_turns

from ltbench.optim.sam import Plain

LAST = "fp32, channels-last"
SWITCHES = {  # bf16, layout, compiled
    "fp32, contiguous": (False, torch.contiguous_format, False),
    LAST: (False, torch.channels_last, False),
    "fp32, channels-last, compiled": (False, torch.channels_last, True),
    "bf16, channels-last": (True, torch.channels_last, False),
    "bf16, channels-last, compiled": (True, torch.channels_last, True),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates = {
        name: step_of(Plain(), args.batch_size, device, *switches)
        for name, switches in SWITCHES.items()
    }
    rounds = take_turns(
        candidates, args.repeats, args.steps, args.batch_size, Rounds(device=device)
    )
    report(
        args,
        rounds.gains(LAST),
        rounds,
        unit="images/s",
        network="resnet32_cifar",
        batch_size=args.batch_size,
    )


if __name__ == "__main__":
    main()

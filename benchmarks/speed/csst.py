"""What does a CSST step cost over a FixMatch step, updates of the multipliers included?

Network, batch and precision are those of ``configs/csst_cifar10.yaml``: WRN-28-2, 64 labelled
images and 256 unlabelled ones in two views, already on the device. In turns:

* ``FixMatch``: its bare step;
* ``CSST``: the same with CSST's hybrid losses and threshold;
* ``update``: the update of the multipliers, one pass over the 5,000 held-out images.

An update is counted once in ``--interval`` steps, 1,000 as in the second half of the published
schedule.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
from timing import Parser, Rounds, report, take_turns
from trainings import CONFIGS, AtFirstBatch, bare_step, train

from ltbench.data.datasets import Batch
from ltbench.methods.csst import CSST
from ltbench.methods.fixmatch import FixMatch


def fixmatch_like(csst: CSST, trainer: L.Trainer) -> FixMatch:
    """Return FixMatch with the network of a CSST run, in the same trainer."""
    network: dict[str, Any] = dict(csst.network)
    fixed = {key: network.pop(key) for key in ("num_classes", "in_chans", "head")}
    found = FixMatch(**fixed, backbone=network.pop("name"), backbone_args=network)
    found.net.load_state_dict(csst.net.state_dict())
    found.trainer = trainer
    return found.to(csst.device).train()


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=3)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--batch-size", type=int, default=64, help="labelled images a step")
    parser.add_argument("--held-out", type=int, default=5000, help="held-out images")
    parser.add_argument("--interval", type=int, default=1000, help="steps between updates")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    args = parser.parse_args(words)
    rounds = Rounds()

    def measure(trainer: L.Trainer, csst: CSST, batch: Batch) -> None:
        rounds.device = csst.device
        candidates = {
            "FixMatch": bare_step(trainer, fixmatch_like(csst, trainer), batch),
            "CSST": bare_step(trainer, csst, batch),
            "update": csst.update_multipliers,
        }
        calls = {"FixMatch": args.steps, "CSST": args.steps}
        take_turns(candidates, args.repeats, calls, rounds=rounds)

    train(
        CONFIGS / "csst_cifar10.yaml",
        AtFirstBatch(measure),
        args.root,
        trainer__precision=args.precision,
        data__batch_size=args.batch_size,
        data__protocol__val_per_class=args.held_out // 10,
    )
    step = "time of a CSST step / of a FixMatch step"
    report(
        args,
        [
            rounds.row(
                f"{step}, with an update every {args.interval:,} steps",
                lambda s: (s["CSST"] + s["update"] / args.interval) / s["FixMatch"],
                "<= 1.03",
            ),
            rounds.row(f"{step}, without updates", lambda s: s["CSST"] / s["FixMatch"]),
        ],
        rounds,
        network="wrn_28_2",
        labelled_images_a_step=args.batch_size,
        unlabelled_images_a_step=4 * args.batch_size,
        held_out_images=args.held_out,
        precision=args.precision,
    )


if __name__ == "__main__":
    main()

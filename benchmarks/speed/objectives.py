"""How does the cost of the objectives grow with the classes?

For each objective of ``ltbench.objectives``, from one random confusion matrix: the update of its
multipliers, its gain matrix and its derivatives, with which CSST and SelMix follow it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from timing import Candidate, Parser, Rounds, report, take_turns

from ltbench.objectives import OBJECTIVES, Ascent, build_objective, joint_confusion

MILLISECONDS = {1000: "< 50"}
ONCE = 1000  # classes beyond which there is one turn, without a warm-up


def candidates(classes: int) -> dict[str, Candidate]:
    """Return what is done with each objective."""
    draw = np.random.default_rng(0)
    joint = joint_confusion(torch.from_numpy(draw.integers(1, 50, (classes, classes))))
    counts = torch.arange(classes, 0, -1)
    prior = counts.double() / counts.sum()

    def everything(name: str) -> None:
        objective = build_objective(name, counts)
        multipliers = objective.update(objective.initial, joint, Ascent())
        objective.gain(prior, joint, multipliers)
        objective.logit_gradient(joint, multipliers)

    return {name: lambda name=name: everything(name) for name in OBJECTIVES}


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--classes", type=int, nargs="*", default=(10, 100, 1000, 8142))
    args = parser.parse_args(words)
    answer, measured = [], []
    for classes in args.classes:
        rounds, found = Rounds(f"{classes:,} classes"), candidates(classes)
        if classes > ONCE:
            for name, call in found.items():
                rounds.turn(name, call)
            rounds.close()
        else:
            take_turns(found, args.repeats, min(20, max(1, 10**5 // classes**2)), rounds=rounds)
        goal = MILLISECONDS.get(classes, "")
        title = f"{classes:,} classes: the slowest objective"
        answer.append(rounds.row(title, lambda s: 1e3 * max(s.values()), goal, "ms"))
        measured.append(rounds)
    report(args, answer, *measured, precision="float64")


if __name__ == "__main__":
    main()

"""What does a SelMix step cost over a plain mixup step, and a look over a forward pass?

A fine-tuning by ``configs/selmix_cifar10.yaml`` (WRN-28-2, 64 pairs, labelled partners) through the
whole project, sampling and augmentation included, takes turns with

* ``mixup``: a bare step of feature mixup on one cached batch of as many pairs;
* ``look``, once a repeat: what happens between two cycles, for the validation images;
* ``forward``, likewise: a bare forward pass over these images.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from timing import Candidate, Parser, Rounds, report
from torch.nn import functional as F
from training import WRN
from trainings import CONFIGS, Pauses, train

from ltbench.data.datasets import Batch
from ltbench.methods.selmix.method import SelMix


def mixup(trainer: L.Trainer, method: SelMix, batch: Batch) -> dict[str, Candidate]:
    """Return a bare step of feature mixup."""
    net, labels = copy.deepcopy(method.net), batch["label"]
    optimizer = method.optimizer([p for p in net.parameters() if p.requires_grad])

    def step() -> None:
        optimizer.zero_grad()
        share = 0.6 + 0.4 * torch.rand(len(labels), 1, device=labels.device)
        with trainer.precision_plugin.forward_context():
            images = torch.cat([batch["image"], batch["partner"]["image"]])
            found = net.forward_head(net.forward_features(images), pre_logits=True)
            one, other = found.chunk(2)
            loss = F.cross_entropy(net.get_classifier()(share * one + (1 - share) * other), labels)
        loss.backward()
        optimizer.step()

    return {"mixup": step}


def looks(trainer: L.Trainer, method: SelMix) -> Mapping[str, Callable[[], int]]:
    """Return a look at the validation images, and the forward pass that it needs."""

    def look() -> int:
        method._look()
        return 1

    @torch.no_grad()
    def forward() -> int:
        method.net.eval()
        with trainer.precision_plugin.forward_context():
            for batch in method.data.evaluation_batches("val", method.device):
                method.net(batch["image"])
        return 1

    return {"look": look, "forward": forward}


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs a step")
    parser.add_argument("--held-out", type=int, default=1000, help="validation images")
    parser.add_argument("--steps", type=int, default=4, help="steps of a repeat")
    args = parser.parse_args(words)
    pauses = Pauses(Rounds(), mixup, args.steps, args.repeats, looks)
    train(
        CONFIGS / "selmix_cifar10.yaml",
        pauses,
        args.root,
        {"init_from": WRN},
        model__partners="labelled",
        model__cycle=pauses.length,  # so that no look falls into a turn
        data__batch_size=args.batch_size,
        data__protocol__val_per_class=args.held_out // 10,
    )
    rounds = pauses.rounds
    step = "time of a SelMix step through the project / of a bare mixup step"
    look = "time of a look / of a forward pass over its images"
    report(
        args,
        [
            rounds.row(step, lambda s: s["project"] / s["mixup"], "<= 1.1"),
            rounds.row(look, lambda s: s["look"] / s["forward"], "<= 1.1"),
        ],
        rounds,
        unit="images/s or passes/s",
        network="wrn_28_2",
        pairs_a_step=args.batch_size,
        validation_images=args.held_out,
        precision="32-true",
    )


if __name__ == "__main__":
    main()

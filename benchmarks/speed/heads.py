"""How long does a head take on stored features: class re-training by `crt_cifar10`, not augmented?

ResNet-32, 12,406 images of 32 pixels, 10 epochs in batches of 128, through the whole project:
sampling, logging, record, curves and a checkpoint an epoch. The features are there when the clocks
start. ``bare`` is the same number of plain steps of a linear layer on them.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from timing import Parser, Rounds, report
from torch import nn
from torch.nn import functional as F
from trainings import CONFIGS, train

from ltbench.data.datasets import FeatureRows

START = {"name": "resnet32_cifar"}


class Whole(Callback):
    """Time a training from its first step to its end, and then a bare loop, by epoch.

    Args:
        rounds: Where the seconds go.
    """

    length = -1

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks."""
        self.rounds.device = pl_module.device
        self.since = self.rounds.now()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Stop them, and take the other's turn."""
        epochs = trainer.max_epochs or 1
        self.rounds.count("project", epochs, self.since)
        rows = pl_module.images(pl_module.data, "train")
        assert isinstance(rows, FeatureRows)
        since = self.rounds.now()
        bare(rows, pl_module.data.batch_size, epochs)
        self.rounds.count("bare", epochs, since)


def bare(rows: FeatureRows, batch: int, epochs: int) -> None:
    """Train a linear layer on features."""
    head = nn.Linear(rows.features.shape[1], 10).to(rows.features.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for some in torch.randint(len(rows), (len(rows),)).split(batch):
            seen = rows[some.tolist()]
            optimizer.zero_grad()
            F.cross_entropy(head(seen["features"]), seen["label"]).backward()
            optimizer.step()


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--largest", type=int, default=5000, help="images of the largest class")
    args = parser.parse_args(words)
    rounds = Rounds()
    for repeat in range(1 + args.repeats):
        train(
            CONFIGS / "crt_cifar10.yaml",
            Whole(rounds),
            args.root,
            {"init_from": START},
            trainer__max_epochs=args.epochs,
            data__augment="[]",
            data__largest=args.largest,
        )
        rounds.close(keep=repeat > 0)
    report(
        args,
        [
            rounds.row(
                f"{args.epochs} epochs", lambda s: args.epochs * s["project"], "<= 5", unit="s"
            ),
            rounds.row(
                "time of an epoch through the project / of a bare one",
                lambda s: s["project"] / s["bare"],
            ),
        ],
        rounds,
        unit="epochs/s",
        network="resnet32_cifar",
        epochs=args.epochs,
        largest_class=args.largest,
        precision="32-true",
    )


if __name__ == "__main__":
    main()

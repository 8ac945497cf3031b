"""What does CBGAN's regulariser add to a step of the same GAN, and the project to the bare step?

A training by ``configs/cbgan_cifar10.yaml`` (SNDCGAN at 32 pixels; 64 images) with an untrained
ResNet-32 as its classifier, a few steps with the regulariser (``CBGAN``) and a few without it
(``GAN``), takes turns with

* ``bare``: latents, both players' passes, losses and Adam steps, without trainer, data, logging and
  averaging;
* ``classifier``: the classifier's forward pass on as many images alone.
"""

import copy
import warnings
from collections.abc import Sequence

import lightning as L
import torch
from timing import Candidate, Parser, Rounds, report
from trainings import CONFIGS, Pauses, train

from ltbench.data.datasets import Batch
from ltbench.methods.cbgan.method import CBGAN

CLASSIFIER = {"name": "resnet32_cifar"}
PLAYERS = 2  # optimizers, each of which the trainer counts as a step


class Alternating(Pauses):
    """Switch the regulariser off and on again from turn to turn."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the regulariser."""
        assert isinstance(pl_module, CBGAN)
        self.balance, self.project = pl_module.balance, "CBGAN"

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Switch it after a turn."""
        assert isinstance(pl_module, CBGAN)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.taken == 0:
            self.project = "GAN" if self.project == "CBGAN" else "CBGAN"
            pl_module.balance = self.balance if self.project == "CBGAN" else None
            self.since = self.rounds.now()


def parts(trainer: L.Trainer, method: CBGAN, batch: Batch) -> dict[str, Candidate]:
    """Return the bare step, and the classifier's pass."""
    size, device = len(batch["label"]), method.device
    generator, discriminator = copy.deepcopy([method.generator, method.discriminator])
    optimizers = [method.optimizer(n.parameters()) for n in (generator, discriminator)]
    real, classifier = batch["image"], method._judges["classifier"]
    autocast = trainer.precision_plugin.forward_context

    def latents() -> torch.Tensor:
        return torch.randn(size, method.latent, device=device)

    def bare() -> None:
        with autocast():
            with torch.no_grad():
                fake = generator(latents()).float()
            scores, _ = discriminator(torch.cat([real, fake]))
            loss = method.loss.discriminator(*scores.chunk(2))
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        discriminator.requires_grad_(False)
        with autocast():
            scores, _ = discriminator(generator(latents()).float())
            with torch.no_grad():
                real_scores, _ = discriminator(real)
            loss = method.loss.generator(real_scores, scores)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        discriminator.requires_grad_(True)

    def forward() -> None:
        with autocast(), torch.no_grad():
            classifier(real)

    return {"bare": bare, "classifier": forward}


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    args = parser.parse_args(words)
    pauses = Alternating(Rounds(), parts, 8, args.repeats)
    pauses.length *= PLAYERS
    warnings.filterwarnings("ignore", "the (classifier|annotator) has", UserWarning)
    train(
        CONFIGS / "cbgan_cifar10.yaml",
        pauses,
        args.root,
        dict.fromkeys(("classifier", "annotator", "fid_features"), CLASSIFIER),
        trainer__precision=args.precision,
        data__batch_size=args.batch_size,
    )
    rounds = pauses.rounds
    report(
        args,
        [
            rounds.row(
                "time of a step with the regulariser / without it",
                lambda s: s["CBGAN"] / s["GAN"],
                "<= 1.15",
            ),
            rounds.row(
                "images/s through the project with the regulariser / of the bare step",
                lambda s: s["bare"] / s["CBGAN"],
                ">= 0.85",
            ),
            rounds.row(
                "images/s through the project without it / of the bare step",
                lambda s: s["bare"] / s["GAN"],
            ),
            rounds.row(
                "time of the classifier's forward pass / of what the regulariser adds",
                lambda s: s["classifier"] / (s["CBGAN"] - s["GAN"]),
            ),
        ],
        rounds,
        unit="images/s",
        network="sndcgan",
        classifier=CLASSIFIER["name"],
        batch_size=args.batch_size,
        precision=args.precision,
    )


if __name__ == "__main__":
    main()

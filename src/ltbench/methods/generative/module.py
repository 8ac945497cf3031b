"""What every generative method shares: samples, who judges them, and how balanced they are."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ltbench.data import profiles
from ltbench.data.base import DataModule
from ltbench.data.datasets import Batch, as_is
from ltbench.data.samplers import EvaluationSampler
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.methods.generative.judges import Inception, Judge, Normalise
from ltbench.methods.generative.samples import (
    Grid,
    Latents,
    from_uint8,
    png,
    to_uint8,
    write_image_folder,
)
from ltbench.methods.parts.stages import Trained
from ltbench.metrics.generation import (
    FeatureMoments,
    FeatureSums,
    GeneratedClasses,
    class_groups,
    frechet_distance,
    per_class_distances,
)
from ltbench.records import read_npz, write_npz

CHECKED = 2000  # training images that a judge is tried on


class GenerativeModule(Method):
    """Base of the generative methods.

    A method builds its networks in ``__init__`` and gives :meth:`sample` and ``training_step``.
    What is evaluated are samples, rounded to 8 bits and drawn as a function of the run's seed; the
    images of a split are only what their features are compared with.

    Args:
        num_classes: Number of classes.
        in_chans: Number of image channels.
        image_size: Side of the images in pixels.
        latent: Length of a latent vector.
        conditional: Whether :meth:`sample` makes the class that it is asked for.
        annotator: Classifier that names the class of a sample: a run on balanced data, which the
            generator never sees.
        classifier: The classifier in the loop: a run on the same long-tailed data.
        fid_features: A run whose pooled features the FID takes; null is the standard Inception.
        inception_weights: File with the weights of the latter; null downloads them.
        resize: Whether samples are resized for networks that were trained on another size.
        samples: Samples that a test draws, and ``ltbench predict`` writes.
        watch_samples: Samples that a validation draws.
    """

    evaluation_arguments = frozenset({"samples", "watch_samples", "inception_weights"})

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        image_size: int,
        latent: int,
        conditional: bool,
        annotator: Trained | None = None,
        classifier: Trained | None = None,
        fid_features: Trained | None = None,
        inception_weights: str | None = None,
        resize: bool = False,
        samples: int = 50_000,
        watch_samples: int = 10_000,
    ) -> None:
        super().__init__()
        if min(samples, watch_samples) < 2:
            raise UserError("samples and watch_samples must be at least 2.")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.image_size = image_size
        self.latent = latent
        self.conditional = conditional
        self.inception_weights = inception_weights
        self.resize = resize
        self.samples = samples
        self.watch_samples = watch_samples
        # The data's own come with a trainer, or with the weights.
        self.scaling = Normalise([0.5] * in_chans, [0.5] * in_chans)
        roles = {"annotator": annotator, "classifier": classifier, "fid_features": fid_features}
        self.starts = {role: trained for role, trained in roles.items() if trained}
        # Not submodules: in no checkpoint, optimizer or DDP, and never in training mode.
        self._judges: dict[str, Judge] = {}
        self._features: list[Judge | Inception] = []
        self._references: dict[str, FeatureSums] = {}
        self._details: dict[str, Any] = {}

    @abstractmethod
    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Make images (B, C, H, W) in [-1, 1] with the generator that is evaluated.

        Args:
            latents: (B, latent) standard normal.
            labels: (B,) classes, for a conditional generator.
        """

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.data.image_size != self.image_size:
            raise UserError(
                f"the GAN makes {self.image_size} pixels a side, the data has "
                f"{self.data.image_size}: set image_size of the model, or of the data."
            )
        mean, std = map(list, self.data.statistics)
        self.scaling = Normalise(mean, std)
        self._load_judges(stage)
        if stage == "fit":
            for role in ("classifier", "annotator"):
                if role in self._judges:
                    self._try_judge(role)

    @override
    def to_predict(self, data: DataModule) -> Latents:
        return Latents(self.samples, self.latent, self.num_classes)

    def _load_judges(self, stage: str) -> None:
        if "annotator" not in self.starts:
            raise UserError(
                "an annotator names the class of each sample: name a run on balanced data with "
                "--model.annotator.path RUN."
            )
        device = self.trainer.strategy.root_device
        shape = (self.num_classes, self.in_chans, self.image_size, self.resize)
        judges = {
            role: self._judges.get(role) or Judge(trained, *shape, role=role).to(device)
            for role, trained in self.starts.items()
        }
        self.lineage = [judge.lineage for judge in judges.values()]
        self._judges = judges
        annotator, classifier = judges["annotator"], judges.get("classifier")
        if classifier and _same(annotator, classifier):
            raise UserError(
                "annotator and classifier are the same model: what the generator learns from "
                "cannot judge it. Give a run on balanced data as annotator."
            )
        if annotator.training_set == self.data.identity()["training_set"]:
            rank_zero_warn(
                "the annotator was trained on the long-tailed images, not balanced ones."
            )
        if stage != "predict" and not self._features:
            standard = None if "fid_features" in judges else Inception(self.inception_weights)
            self._features = [(standard or judges["fid_features"]).to(device)]

    @torch.no_grad()
    def _try_judge(self, role: str) -> None:
        """Warn of a judge that is near chance on training images at the generator's size."""
        judge, labels = self._judges[role], self.data.splits["train"].labels
        each = max(1, CHECKED // self.num_classes)
        recalls = []
        for c in range(self.num_classes):
            rows = np.flatnonzero(labels == c)[:each].tolist()
            images = self.data.dataset("train").__getitems__(rows)["image"].cpu()
            seen = self.scaling.inverse(self.data.normalise(images))
            seen = seen.to(judge.normalise.scale.device)  # where this module is not yet
            recalls.append(float((judge(seen).argmax(1) == c).float().mean()))
        recall, chance = float(np.mean(recalls)), 1 / self.num_classes
        if recall < chance + 0.1 * (1 - chance):
            rank_zero_warn(
                f"the {role} has a mean recall of {recall:.1%} on training images, where "
                f"chance is {chance:.1%}: it has hardly been trained, or on other images."
            )

    def real_images(self, batch: Batch) -> Tensor:
        """Return the images of a normalised batch in [-1, 1]."""
        return self.scaling.inverse(batch["image"])

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass  # samples are judged, once, at the end of the epoch

    @override
    def on_validation_epoch_end(self) -> None:
        for split in self.data.watched:
            prefix = "val" if split == "val" else f"{split}_watched"
            self._evaluate(split, prefix, self.watch_samples, f"epoch_{self.current_epoch + 1:05}")

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    @override
    def on_test_epoch_end(self) -> None:
        self._evaluate("test", "test", self.samples, "last")

    @override
    def test_details(self) -> dict[str, Any]:
        return self._details

    @torch.no_grad()
    def _evaluate(self, split: str, prefix: str, number: int, picture: str) -> None:
        (features,), reference = self._features, self._reference(split)
        metric = f"fid[{features.name}]" if features.name else "fid"
        annotator, classifier = self._judges["annotator"], self._judges.get("classifier")
        seen, in_loop = (GeneratedClasses(self.num_classes).to(self.device) for _ in range(2))
        groups = self._groups(split)
        sums = FeatureMoments(features.width, groups).to(self.device)
        grid = Grid(self.data.source.class_names)
        for batch in self._latents(number):
            pixels = self._pixels(batch)
            images = from_uint8(pixels)
            probabilities = annotator(images).softmax(1)
            predicted = probabilities.argmax(1)
            seen.update(probabilities)
            if classifier:
                in_loop.update(classifier(images).softmax(1))
            sums.update(features.features(images), predicted)
            grid.add(pixels, predicted)
        generated = sums.compute()
        counts, balance = seen.compute()
        metrics = {metric: frechet_distance(generated.moments(), reference.moments())} | balance
        if classifier:
            metrics |= {f"in_loop/{name}": value for name, value in in_loop.compute()[1].items()}
        self.log_dict(
            {f"{prefix}/{k}": torch.tensor(v, dtype=torch.float64) for k, v in metrics.items()}
        )
        self.traces["generated_classes"] = torch.from_numpy(counts)
        self._details = {
            "generated_classes": counts.tolist(),
            f"per_class_{metric}": per_class_distances(generated, reference, groups),
        }
        if self.trainer.is_global_zero:
            self.pictures = {f"samples/{picture}.png": grid.png(counts)}

    def _latents(self, number: int) -> Iterator[Batch]:
        """Yield this rank's share of so many samples, which do not depend on the ranks."""
        dataset = Latents(number, self.latent, self.num_classes)
        sampler = EvaluationSampler(dataset)
        size = self.data.eval_batch_size
        for batch in DataLoader(dataset, size, sampler=sampler, collate_fn=as_is):
            yield {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _pixels(self, batch: Batch) -> Tensor:
        with self.trainer.precision_plugin.forward_context():
            return to_uint8(self.sample(batch["latent"], batch["label"]))

    def _groups(self, split: str) -> NDArray[np.int64]:
        (features,) = self._features
        counts = np.bincount(self.data.splits[split].labels, minlength=self.num_classes)
        return class_groups(counts, features.width)

    def _reference(self, split: str) -> FeatureSums:
        """Return the sums of a split's features, stored by a hash of images and network."""
        if split in self._references:
            return self._references[split]
        (features,) = self._features
        images, source = self.data.splits[split], self.data.source
        what = [source.fingerprint, images.part, profiles.index_hash(images.indices)]
        what += [str(self.image_size), str(source.decoding), *FeatureSums._fields]
        key = "\n".join([features.name, *what])
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        path = Path(self.trainer.default_root_dir) / "reference_features" / f"{name}.npz"
        first, broadcast = self.trainer.is_global_zero, self.trainer.strategy.broadcast
        reference: FeatureSums | None = None
        if broadcast(path.is_file()):
            reference = broadcast(_stored_sums(path) if first else None)
        if reference is None:
            sums = FeatureMoments(features.width, self._groups(split)).to(self.device)
            for batch in self.data.evaluation_batches(split, self.device):
                sums.update(features.features(self.real_images(batch)), batch["label"])
            reference = sums.compute()
            if first:
                write_npz(path, reference._asdict())
        self._references[split] = reference
        return reference

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        # An unconditional sample gets the label that the classifier predicts: like the generator,
        # that knows the training set alone.
        pixels = self._pixels(batch)
        judge = self._judges.get("classifier") or self._judges["annotator"]
        with torch.autocast(self.device.type, enabled=False):
            probabilities = judge(from_uint8(pixels)).softmax(1)
        labels = batch["label"] if self.conditional else probabilities.argmax(1)
        return {
            "png": [png(image) for image in pixels.cpu()],
            "label": labels.cpu(),
            "confidence": probabilities.gather(1, labels[:, None]).squeeze(1).cpu(),
        }

    @override
    def write_predictions(self, batches: Sequence[Any], output: str | None) -> str:
        root = Path(output or "samples")
        images = [image for batch in batches for image in batch["png"]]
        labels, confidences = (
            torch.cat([batch[name] for batch in batches]).numpy()
            for name in ("label", "confidence")
        )
        write_image_folder(root, images, labels, confidences, self.data.source.class_names)
        missing = self.num_classes - len(np.unique(labels))
        without = f", none of {missing} classes" if missing else ""
        return f"{len(images)} images{without}: {root} (train/<class>/, labels.csv)"


def _same(one: Judge, other: Judge) -> bool:
    """Whether two judges come from one run, or have the same weights."""
    job = one.lineage.get("job_id")
    if job and job == other.lineage.get("job_id"):
        return True
    weights, others = one.network.state_dict(), other.network.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in weights.items()
    )


def _stored_sums(path: Path) -> FeatureSums | None:
    try:
        return FeatureSums(**read_npz(path))
    except (UserError, TypeError):
        return None  # damaged: they are made again

"""Baselines without training: what a run's stored scores give after a correction.

* Logit adjustment and tau-normalisation (:mod:`ltbench.corrections`); the latter needs the norms
  of the classifier's weights, so the run's checkpoint.
* Temperature: ``z / T``, arXiv 1706.04599, section 4.2; it changes the calibration alone.

Each has one constant, chosen on validation images for the metric that it is meant to improve;
without them there is no baseline. A method that does not beat these was not worth its training.
``ltbench bench run --heads posthocla,taunorm`` makes rows of the first two, with all metrics of the
one constant that is best for mean recall.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from ltbench import untrusted
from ltbench.bench.score.results import Run
from ltbench.corrections import TAUS, logit_adjusted, tau_normalised, tune
from ltbench.errors import UserError
from ltbench.metrics.catalogue import metrics_from_counts
from ltbench.metrics.counts import by_frequency, calibration_error, reliability
from ltbench.records import Predictions, RunFolder, write_json
from ltbench.records.files import read_json
from ltbench.records.schema import number

Floats = NDArray[np.floating]
TEMPERATURES = np.geomspace(0.25, 8, 41)
CORRECTIONS = {  # metric -> the corrections that are meant to improve it
    "accuracy": ("logit adjustment", "tau-normalisation"),
    "hmean_recall": ("logit adjustment", "tau-normalisation"),
    "gmean_recall": ("logit adjustment",),
    "min_recall": ("logit adjustment", "tau-normalisation"),
    "min_ht_recall": ("logit adjustment",),
    "min_coverage": ("logit adjustment",),
    "ece": ("temperature",),
}

Corrected = dict[str, dict[str, dict[str, float]]]
"""Metric -> correction -> ``value`` on the test images and the ``constant`` it was chosen with."""

Rule = Callable[[Floats, float], Floats]


def expected_calibration_error(logits: Floats, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Return the ECE as :class:`ltbench.metrics.collector.LongTailMetrics` defines it."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    hits = probabilities.argmax(1) == labels
    return calibration_error(*reliability(probabilities.max(1), hits, bins))


def baselines(runs: Sequence[Run], problems: list[str]) -> Corrected:
    """Return what each correction gives on the test images: means over the runs of a row.

    A correction that one of the runs cannot have is left out. The results are kept in the run
    folder, as ``corrected_<selection>.json``. Files that cannot be used are added to ``problems``.
    """
    first, *others = [_kept(run, problems) for run in runs]
    means: Corrected = {}
    for name, rules in first.items():
        for rule, entry in rules.items():
            if all(rule in other.get(name, {}) for other in others):
                each = [entry, *(other[name][rule] for other in others)]
                mean = {key: float(np.mean([one[key] for one in each])) for key in entry}
                means.setdefault(name, {})[rule] = mean
    return means


def under_priors(runs: Sequence[Run]) -> dict[str, float]:
    """Return the mean accuracy of runs if the test set had other class shares, from recalls alone.

    ``forward`` are the shares of the training set, ``backward`` the same in reverse order of size.
    """
    accuracies: dict[str, list[float]] = {}
    for run in runs:
        recalls = np.array(run.metrics.get("per_class_recall") or [], dtype=float)
        if not np.isfinite(recalls).any():
            return {}
        counts = run.classes.counts.astype(float)
        order = by_frequency(counts)
        backward = np.empty_like(counts)
        backward[order] = counts[order[::-1]]
        shares = {"uniform": np.ones_like(counts), "forward": counts, "backward": backward}
        for name, share in shares.items():
            share = np.where(np.isfinite(recalls), share, 0)
            accuracies.setdefault(name, []).append(float(np.nansum(share * recalls) / share.sum()))
    return {name: float(np.mean(values)) for name, values in accuracies.items()}


def _kept(run: Run, problems: list[str]) -> Corrected:
    path = RunFolder(run.folder).corrected(run.selection)
    stored = _valid(read_json(path))
    if stored.keys() == CORRECTIONS.keys():
        return stored
    unusable: list[str] = []
    computed = _compute(run, unusable)
    problems += [problem for problem in unusable if problem not in problems]
    if not computed:
        return stored
    # An earlier ltbench had fewer metrics, and perhaps a checkpoint that is gone by now.
    computed = {name: stored.get(name, {}) | rules for name, rules in computed.items()}
    if not unusable:
        with contextlib.suppress(OSError):  # of another user: computed again next time
            write_json(path, computed)
    return computed


def _valid(stored: Mapping[str, Any]) -> Corrected:
    """Return stored corrections; none where a file holds anything else, so they are made again."""
    for name, rules in stored.items():
        if name not in CORRECTIONS or not isinstance(rules, dict):
            return {}
        for rule, entry in rules.items():
            if rule not in CORRECTIONS[name] or not isinstance(entry, dict):
                return {}
            if entry.keys() != {"value", "constant"} or not all(map(number, entry.values())):
                return {}
    return dict(stored)


def _compute(run: Run, problems: list[str]) -> Corrected:
    try:
        val = run.predictions("val", logits=True)
        test = run.predictions("test", logits=True) if val else None
    except UserError as reason:
        problems.append(str(reason))
        return {}
    if not (val and test and val.logits is not None and test.logits is not None):
        return {}
    counts = run.classes.counts
    rules: dict[str, Rule] = {}
    if counts.min() > 0:
        log_prior = np.log(counts / counts.sum())
        rules["logit adjustment"] = lambda logits, tau: logit_adjusted(logits, log_prior, tau)
    try:
        classifier = classifier_of(run, test.logits.shape[1])
    except UserError as reason:
        problems.append(str(reason))
        classifier = None
    if classifier:
        norms, bias = classifier
        rules["tau-normalisation"] = lambda logits, tau: tau_normalised(logits - bias, norms, tau)
    scale = tune([-_loss(val, t) for t in TEMPERATURES], TEMPERATURES)
    error = expected_calibration_error(test.logits / scale, test.label)
    best: Corrected = {name: {} for name in CORRECTIONS}
    best["ece"]["temperature"] = {"value": error, "constant": scale}
    for rule, correct in rules.items():
        tried = [_metrics(val, correct(val.logits, tau), counts) for tau in TAUS[rule]]
        for name in (name for name, fitting in CORRECTIONS.items() if rule in fitting):
            # Test images count alike in accuracy, and their classes may not in validation.
            aim = "mean_recall" if name == "accuracy" else name
            tau = tune([metrics[aim] for metrics in tried], TAUS[rule])
            value = _metrics(test, correct(test.logits, tau), counts)[name]
            if np.isfinite(value):  # head and tail need ten classes
                best[name][rule] = {"value": value, "constant": tau}
    return best


def _loss(predictions: Predictions, temperature: float) -> float:
    assert predictions.logits is not None
    scores = predictions.logits.astype(np.float64) / temperature
    return float((logsumexp(scores, 1) - scores[np.arange(len(scores)), predictions.label]).mean())


def _metrics(
    predictions: Predictions, logits: Floats, counts: NDArray[np.int64]
) -> dict[str, float]:
    classes = logits.shape[1]
    prediction = logits.argmax(1)
    hits = np.bincount(predictions.label[prediction == predictions.label], minlength=classes)
    support = np.bincount(predictions.label, minlength=classes)
    return metrics_from_counts(hits, support, np.bincount(prediction, minlength=classes), counts)


def classifier_of(run: Run, classes: int) -> tuple[Floats, Floats] | None:
    """Return the norms (C,) and bias (C,) of a run's linear classifier, if it has exactly one.

    Raises:
        UserError: The checkpoint is damaged, or the classifier has a row of zeros or no numbers.
    """
    path = RunFolder(run.folder).checkpoint(run.selection)
    if not path.exists():
        return None
    import torch

    try:
        state = untrusted.load_checkpoint(path, mmap=True)["state_dict"]
    except Exception as error:  # torch raises errors of many types on other files
        raise UserError(f"{path} cannot be read, so nothing was corrected: {error}") from error
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    weights = {
        name: value
        for name, value in tensors.items()
        if str(name).startswith("net.") and value.ndim == 2 and len(value) == classes
    }
    if len(weights) != 1:
        return None
    ((name, weight),) = weights.items()
    bias = tensors.get(name.removesuffix("weight") + "bias", torch.zeros(classes)).float()
    norms = weight.float().norm(dim=1)
    if bias.shape != norms.shape or not (norms > 0).all() or not (norms + bias).isfinite().all():
        raise UserError(f"{path} has no usable classifier {name}, so nothing was corrected.")
    return norms.numpy(), bias.numpy()

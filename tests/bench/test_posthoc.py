"""Corrections without training, against brute force and the numbers of their papers."""

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import gmean, hmean

from ltbench.bench.score import posthoc, results
from ltbench.metrics.collector import LongTailMetrics

COUNTS = np.array([120, 60, 15])
LOG_PRIOR = np.log(COUNTS / COUNTS.sum())


@pytest.mark.paper
def test_tau_normalisation_divides_by_the_norm_to_the_power_of_tau():
    """arXiv 1910.09217: w = (3, 4) and tau 0.5 give a norm of sqrt 5; 1 gives 1; 0 changes none."""
    w = np.array([3.0, 4.0])
    for tau, norm in ((0.5, 2.236068), (1.0, 1.0), (0.0, 5.0)):
        # The feature w / |w| has the logit |w| before, and the new norm after.
        logit = posthoc.tau_normalised(np.array([[5.0]]), np.array([np.linalg.norm(w)]), tau)
        assert logit == pytest.approx(norm, abs=1e-6)


@pytest.mark.paper
def test_logit_adjustment_with_tau_1_is_bayes_for_a_balanced_test_set():
    """arXiv 2007.07314, section 4: argmax p(y|x) / pi_y, p estimated under the long tail."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(50, 3))
    posterior = np.exp(log_softmax(logits, 1))
    balanced = posterior / (COUNTS / COUNTS.sum())
    adjusted = posthoc.logit_adjusted(logits, LOG_PRIOR, 1.0)
    assert np.array_equal(adjusted.argmax(1), balanced.argmax(1))


def test_the_calibration_error_is_that_of_the_metrics():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(400, 3)).astype(np.float32) * 3
    labels = draw.integers(0, 3, 400)
    metric = LongTailMetrics(3)
    metric.update(torch.from_numpy(logits), torch.from_numpy(labels))
    expected = metric.compute()["ece"].item()
    assert posthoc.expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-6)


REDUCTIONS = {
    "accuracy": np.mean,
    "hmean_recall": hmean,
    "gmean_recall": gmean,
    "min_recall": np.min,
}


@pytest.mark.parametrize("name", [*REDUCTIONS, "min_coverage"])
def test_constants_are_chosen_on_validation_for_each_metric_and_scored_on_test(name, make_run):
    run = results.read(make_run("ce", 0, logits=True))
    corrected = posthoc.baselines([run], [])
    assert corrected.keys() == posthoc.CORRECTIONS.keys() - {"min_ht_recall"}  # below ten classes
    assert corrected[name].keys() == {"logit adjustment"}  # no checkpoint, no norms
    val, test = run.predictions("val", logits=True), run.predictions(logits=True)

    def score(predictions, tau):
        predicted = posthoc.logit_adjusted(predictions.logits, LOG_PRIOR, tau).argmax(1)
        if name == "min_coverage":
            return min((predicted == c).mean() for c in range(3))
        right = predicted == predictions.label
        return REDUCTIONS[name]([right[predictions.label == c].mean() for c in range(3)])

    taus = posthoc.TAUS["logit adjustment"]
    best = taus[int(np.argmax([score(val, tau) for tau in taus]))]
    adjusted = corrected[name]["logit adjustment"]
    assert adjusted["constant"] == pytest.approx(best)
    assert adjusted["value"] == pytest.approx(score(test, best))


def test_an_overconfident_network_gets_a_temperature_above_1_and_a_smaller_error(make_run):
    folder = make_run("ce", 0, (0.6, 0.6, 0.6), logits=True)
    run = results.read(folder)
    corrected = posthoc.baselines([run], [])["ece"]["temperature"]
    logits = run.predictions(logits=True)
    assert corrected["constant"] > 1
    before = posthoc.expected_calibration_error(logits.logits, logits.label)
    assert corrected["value"] < before


def test_the_norms_of_a_checkpoint_are_used(make_run):
    folder = make_run("ce", 0, logits=True)
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.5]])
    state = {"net.conv.weight": torch.ones(3, 1, 1, 1), "net.fc.weight": weight}
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": state}, folder / "checkpoints/last.ckpt")
    run = results.read(folder)
    norms, bias = posthoc.classifier_of(run, 3)
    assert norms.tolist() == [5, 1, 0.5]
    assert bias.tolist() == [0, 0, 0]
    assert "tau-normalisation" in posthoc.baselines([run], [])["min_recall"]


@pytest.mark.parametrize(
    "extra", [{"net.head_dist.weight": torch.ones(3, 2)}, {"net.fc.weight": torch.ones(4, 2)}]
)
def test_a_network_without_one_linear_classifier_has_no_norms(extra, make_run):
    folder = make_run("ce", 0, logits=True)
    (folder / "checkpoints").mkdir()
    state = {"net.fc.weight": torch.ones(3, 2), **extra}
    torch.save({"state_dict": state}, folder / "checkpoints/last.ckpt")
    assert posthoc.classifier_of(results.read(folder), 3) is None


def test_without_validation_there_is_nothing_to_choose_by(make_run):
    assert posthoc.baselines([results.read(make_run("ce", 0))], []) == {}


def test_what_was_computed_is_kept_in_the_run_folder(make_run):
    folder = make_run("ce", 0, logits=True)
    run = results.read(folder)
    path = folder / "corrected_last.json"
    first = posthoc.baselines([run], [])
    assert json.loads(path.read_text()).keys() == posthoc.CORRECTIONS.keys()
    val = (folder / "val_predictions_last.npz").rename(folder / "elsewhere.npz")
    assert posthoc.baselines([run], []) == first
    # What an earlier ltbench kept, of fewer metrics and a checkpoint that is gone, is completed.
    old = {"tau-normalisation": {"value": 0.5, "constant": 1.0}}
    path.write_text(json.dumps({"min_recall": old}))
    assert posthoc.baselines([run], []) == {"min_recall": old}
    val.rename(folder / "val_predictions_last.npz")
    assert posthoc.baselines([run], []) == first | {"min_recall": old | first["min_recall"]}
    path.write_text("[1]")
    assert posthoc.baselines([run], []) == first


def test_other_class_shares_weigh_the_recalls(make_run):
    run = results.read(make_run("ce", 0))
    recalls = np.array(run.metrics["per_class_recall"])
    corrected = posthoc.under_priors([run])
    assert corrected["uniform"] == pytest.approx(recalls.mean())
    assert corrected["forward"] == pytest.approx((COUNTS * recalls).sum() / COUNTS.sum())
    assert corrected["backward"] == pytest.approx((COUNTS[::-1] * recalls).sum() / COUNTS.sum())

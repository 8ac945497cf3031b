"""SelMix: a look at the validation images, the pairs it draws, and a step on them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from selmix_digits import Looks, build, digits, measure, sgd, train
from sklearn.metrics import confusion_matrix
from torch.testing import assert_close

from ltbench.methods import SelMix
from ltbench.methods.selmix.gain import pair_gains, selective, smooth
from ltbench.objectives import build_objective, joint_confusion


def min_recall(net, data, split):
    labels, predictions, _ = measure(net.eval(), data, split)
    counts = confusion_matrix(labels, predictions.detach())
    return (counts.diagonal() / counts.sum(1)).min()


def test_each_objective_rises_above_the_start(start):
    data = digits()
    data.setup()
    before = Looks()
    train(start, data, epochs=1, callbacks=[before])
    model, _ = train(start, epochs=15, cycle=20, sharpness=2.0)
    assert min_recall(model.net, data, "val") > min_recall(before.nets[0], data, "val") + 0.1
    assert min_recall(model.net, data, "test") > min_recall(before.nets[0], data, "test") + 0.1


def test_a_look_gives_the_gains_of_the_validation_images(start):
    looks = Looks()
    model, trainer = train(start, epochs=3, callbacks=[looks], objective="hmean_recall")
    data = trainer.datamodule
    values = []
    for net, traces, found in zip(looks.nets, looks.traces, looks.found, strict=True):
        labels, predictions, features = measure(net, data, "val")
        counts = torch.from_numpy(confusion_matrix(labels, predictions))
        smoothed = joint_confusion(counts, 0.5)
        centroids = torch.stack([features[labels == c].double().mean(0) for c in range(10)])
        slopes = model.held_out.objective.logit_gradient(smoothed, model.multipliers)
        with torch.no_grad():
            gains = pair_gains(centroids, net.fc.weight, net.fc.bias, slopes)
        expected = smooth(selective(gains, 10.0))
        assert_close(traces["pair_shares"], expected.float(), atol=1e-5, rtol=1e-4)
        assert_close(traces["first_shares"], expected.sum(1))
        assert "lambda" not in traces  # of a mean there are none
        assert float(found["train/largest_share"]) == pytest.approx(
            float(selective(gains, 10.0).max()), rel=1e-3
        )
        values.append(float(model.held_out.objective.value(joint_confusion(counts))))
        assert float(found["train/objective"]) == pytest.approx(values[-1])
        assert float(found["train/positive_gains"]) == pytest.approx(
            float((gains > 0).float().mean())
        )
        assert float(found["train/largest_gain"]) == pytest.approx(float(gains.max()), rel=1e-4)
    assert_close(torch.tensor(model.history.actual).double(), torch.tensor(values).double().diff())
    assert len(model.history.predicted) == 3


@pytest.mark.paper
def test_smoothed_counts_change_derivatives_by_the_size_that_the_card_tells(start):
    """The code floors C at 1e-7; 500 validation images of each of 10 classes, as on CIFAR-10."""
    classes, images = 10, 500
    counts = torch.full((classes, classes), 10.0)
    counts.fill_diagonal_(images - 10.0 * (classes - 1))
    counts[0] = torch.tensor([0.0, images, *[0.0] * (classes - 2)])  # never found
    objective = build_objective("mean_recall", torch.ones(classes))

    def slopes(smoothing):
        return objective.logit_gradient(joint_confusion(counts, smoothing), objective.initial)

    floored = joint_confusion(counts).clamp(min=1e-7)
    published = objective.logit_gradient(floored, objective.initial)
    ratio = slopes(0.5) / published
    assert ratio[0, 0] == pytest.approx(1000, rel=0.02)  # 0.5 / 505 against 1e-7 * 10
    assert 0.01 < (ratio.diagonal()[1:] - 1).abs().max() < 0.04
    assert_close(slopes(0.0)[1:].diagonal(1), published[1:].diagonal(1))

    ((_, applies),) = (
        (text, when) for text, when in SelMix.paper.deviations.items() if "count_smoothing" in text
    )
    for smoothing in (0.5, 0.0):
        assert applies(build(start, count_smoothing=smoothing)[0]) == bool(smoothing)


def test_a_step_mixes_features_and_learns_the_label_of_the_first(start):
    model, _ = train(start, epochs=1)
    images = torch.randn(8, 1, 8, 8)
    labels, share = torch.tensor([3, 1, 0, 9]), torch.tensor([[0.6], [0.7], [0.9], [1.0]])
    first, second = images.chunk(2)
    batch = {"image": first, "label": labels, "partner": {"image": second}}
    prepared = model.prepare_step(batch) | {"share": share}
    net = copy.deepcopy(model.net).eval()
    one, other = net.forward_head(net.forward_features(images), pre_logits=True).chunk(2)
    expected = F.cross_entropy(net.fc(share * one + (1 - share) * other), labels)
    assert_close(model.loss_of(prepared), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(model.loss_of(prepared), expected, rtol=0.05, atol=0.05)


def test_weights_of_the_first_are_uniform_above_their_least(start):
    model, _ = train(start, epochs=1, min_share=0.7)
    torch.manual_seed(0)
    images = {"image": torch.zeros(2000, 1, 1, 1)}
    batch = {**images, "label": torch.zeros(2000, dtype=torch.long), "partner": images}
    share = model.prepare_step(batch)["share"]
    assert share.shape == (2000, 1)
    assert 0.7 <= share.min() < 0.701
    assert 0.999 < share.max() <= 1
    assert float(share.mean()) == pytest.approx(0.85, abs=0.01)


def test_only_the_classifier_moves_at_the_full_rate(start):
    looks = Looks()
    model, _ = train(start, epochs=1, callbacks=[looks])
    weight, bias, backbone = model.optimizers().param_groups
    assert [len(group["params"]) for group in (weight, bias, backbone)] == [1, 1, 1]
    assert [group["initial_lr"] for group in (weight, bias, backbone)] == [0.01, 0.01, 0.001]
    assert [group["weight_decay"] for group in (weight, bias, backbone)] == [5e-4, 0, 5e-4]
    before, after = looks.nets[0].state_dict(), model.net.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"conv.weight", "fc.weight", "fc.bias"}


def test_batches_hold_pairs_of_the_labelled_images(start):
    looks = Looks()
    _, trainer = train(start, epochs=1, callbacks=[looks], policy="class_balanced")
    split = trainer.datamodule.splits["train"]
    label_of = dict(zip(split.indices.tolist(), split.labels.tolist(), strict=True))
    assert len(looks.batches) == 5
    for batch in looks.batches:
        assert len(batch["image"]) == len(batch["partner"]["image"]) == 32
        first, second = batch["index"], batch["partner"]["index"]
        labels = [label_of[index] for index in first.tolist()]
        assert labels == batch["label"].tolist()
        assert labels == [label_of[index] for index in second.tolist()]


def test_pseudo_labels_are_renewed_each_cycle_and_true_labels_stay_hidden(start):
    looks = Looks()
    data = digits(oracle=True)
    model, _ = train(
        start, data, epochs=3, callbacks=[looks], partners="unlabelled", optimizer=sgd(0.2)
    )
    truth = data.oracle_labels()
    seen = []
    for net, found in zip(looks.nets, looks.found, strict=True):
        _, labels, _ = measure(net, data, "unlabelled")
        accuracy = (labels == truth).double().mean()
        assert float(found["train/pseudo_label_accuracy"]) == pytest.approx(float(accuracy))
        seen.append(labels)
    assert not torch.equal(seen[0], seen[-1])
    assert torch.equal(model.sampler.second.rows, seen[-1].argsort(stable=True))

    looks = Looks()
    train(start, epochs=1, callbacks=[looks], partners="unlabelled")
    assert "train/pseudo_label_accuracy" not in looks.found[0]

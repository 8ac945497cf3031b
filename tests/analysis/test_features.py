import numpy as np
import pandas as pd
import pytest
import torch
from digit_runs import analyze, deit_run
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from ltbench.analysis.features import Moments, neural_collapse, project


def moments(features, labels, classes):
    sums = Moments(classes, features.shape[1])
    for at in range(0, len(labels), 7):
        sums.add(torch.from_numpy(features[at : at + 7]), torch.from_numpy(labels[at : at + 7]))
    return sums


def draw(images=90, classes=5, width=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), images // classes))
    return rng.normal(size=(images, width)) + 3 * np.eye(classes, width)[labels], labels, rng


@pytest.mark.paper
def test_collapsed_features_and_classifier_have_no_distance_to_neural_collapse():
    classes = 5
    simplex = np.eye(classes) - 1 / classes  # equal norms, cosines -1 / (C - 1)
    labels = np.repeat(np.arange(classes), [40, 20, 10, 5, 2])  # the tail plays no part in it
    result = neural_collapse(moments(3 + 2 * simplex[labels], labels, classes), 7 * simplex)
    assert list(result.values()) == pytest.approx([0] * 4, abs=1e-10)


def test_neural_collapse_measures_are_those_of_their_definitions():
    features, labels, rng = draw()
    weight = rng.normal(size=(5, 6))
    result = neural_collapse(moments(features, labels, 5), weight)
    means = np.stack([features[labels == c].mean(0) for c in range(5)])
    within = np.mean([np.outer(x - means[y], x - means[y]) for x, y in zip(features, labels)], 0)  # noqa: B905
    centred = means - means.mean(0)
    between = np.mean([np.outer(m, m) for m in centred], 0)
    assert result["within_over_between"] == pytest.approx(
        np.trace(within @ np.linalg.pinv(between)) / 5
    )
    lengths = np.linalg.norm(centred, axis=1)
    assert result["norm_spread"] == pytest.approx(lengths.std() / lengths.mean())
    cosines = [
        centred[i] @ centred[j] / lengths[i] / lengths[j]
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert result["cosine_gap"] == pytest.approx(np.mean(np.abs(np.array(cosines) + 1 / 4)))
    rows = weight - weight.mean(0)
    gap = rows / np.linalg.norm(rows) - centred / np.linalg.norm(centred)
    assert result["weight_gap"] == pytest.approx(np.linalg.norm(gap))


def test_classes_without_images_are_left_out():
    features, labels, rng = draw()
    weight = rng.normal(size=(8, 6))
    shifted = moments(features, labels + 2, 8)
    assert neural_collapse(shifted, weight) == pytest.approx(
        neural_collapse(moments(features, labels, 5), weight[2:7])
    )
    assert shifted.within[[0, 1, 7]].tolist() == [0, 0, 0]


def test_the_picture_is_sklearns_pca_up_to_signs():
    features, labels, _ = draw()
    explained, result = project(
        moments(features, labels, 5), {0: features[:20], 3: features[20:30]}
    )
    pca = PCA(2).fit(features)
    assert explained == pytest.approx(pca.explained_variance_ratio_)
    for where, rows in ((result[0], features[:20]), (result[3], features[20:30])):
        assert np.abs(where) == pytest.approx(np.abs(pca.transform(rows)))


def test_the_table_of_a_run_has_a_row_a_class_by_decreasing_frequency(
    ltbench, digits_run, tmp_path
):
    result = analyze(ltbench, "features", digits_run.folder, tmp_path)
    table = pd.read_csv(tmp_path / "features.csv")
    assert table["train_images"].tolist() == [48, 37, 28, 22, 17, 13, 10, 8, 6, 5]
    assert (table["images"] == table["train_images"]).all()
    state = torch.load(digits_run.last, weights_only=True)["state_dict"]
    assert table["weight_norm"].to_numpy() == pytest.approx(
        state["net.fc.weight"].norm(dim=1).numpy()
    )
    names = ("feature_norm", "centre_distance", "within_variance", "weight_norm")
    for name in names:
        expected = spearmanr(table["train_images"], table[name]).statistic
        assert result["correlation_with_count"][name] == pytest.approx(expected)
    assert (table["within_variance"] > 0).all()
    stored = {path: path.stat().st_mtime_ns for path in (digits_run.folder / "features").iterdir()}
    whole = analyze(ltbench, "features", digits_run.folder, tmp_path / "b")
    assert stored == {path: path.stat().st_mtime_ns for path in stored}  # read, not written
    assert whole["collapse"] == pytest.approx(result["collapse"], rel=1e-5)


def test_both_heads_of_a_student_are_seen(ltbench, digits_run, tmp_path):
    result = analyze(ltbench, "features", deit_run(digits_run), tmp_path, "--split", "test")
    assert set(result["figures"]) == {"features-test.png", "features-test-pca.png"}
    assert pd.read_csv(tmp_path / "features-test.csv")["images"].tolist() == [40] * 10

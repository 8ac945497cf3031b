import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.metrics.catalogue import metrics_from_counts
from ltbench.objectives import (
    FLOOR,
    OBJECTIVES,
    Ascent,
    BestResponse,
    Covered,
    LeastRecall,
    Objective,
    build_objective,
    decompose,
    geometric_mean,
    harmonic_mean,
    joint_confusion,
    mean,
    rates,
    zero_recall_classes,
)

# The examples below are worked out by hand from arXiv 2403.18301 and arXiv 2304.14738.
Q = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.4, 0.4]], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
SKEWED = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
JOINT = UNIFORM[:, None] * Q
NONE = torch.empty(0, dtype=torch.float64)
PRIOR = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
CLASSES = torch.eye(3, dtype=torch.float64)
TWO_GROUPS = torch.tensor([[0.5, 0.5, 0], [0, 0, 1]], dtype=torch.float64)
# The labelled images of CIFAR-10-LT at imbalance factor 100, 1500 in the largest class.
CIFAR10 = torch.tensor([1500, 899, 539, 323, 193, 116, 69, 41, 25, 15])


def close(actual, expected, tol=6e-7):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=tol, rtol=0)


def with_recall(recall, prior=None):
    """A joint confusion matrix with these recalls, its errors spread evenly."""
    recall = torch.tensor(recall, dtype=torch.float64)
    k = len(recall)
    rows = ((1 - recall) / (k - 1))[:, None].repeat(1, k)
    rows.diagonal().copy_(recall)
    prior = torch.full((k,), 1 / k, dtype=torch.float64) if prior is None else prior
    return prior[:, None] * rows


@pytest.mark.paper
def test_values():
    close(Objective(mean).value(JOINT), 0.6)
    close(LeastRecall(CLASSES).value(JOINT), 0.4)
    close(Objective(geometric_mean).value(JOINT), 0.576900)
    close(Objective(harmonic_mean).value(JOINT), 0.553846)
    close(LeastRecall(TWO_GROUPS).value(JOINT), 0.4)
    close(rates(JOINT)[1], [0.433333, 0.366667, 0.2])
    close(Covered(mean, CLASSES).violation(JOINT), 0.95 / 3 - 0.2)


@pytest.mark.paper
def test_values_of_counts():
    joint = joint_confusion(torch.tensor([[45, 4, 1], [10, 35, 5], [20, 10, 20]]))
    recall, coverage = rates(joint)
    close(recall, [0.9, 0.7, 0.4])
    close(coverage, [0.5, 0.326667, 0.173333])
    close(Objective(mean).value(joint), 0.666667)
    close(LeastRecall(CLASSES).value(joint), 0.4)
    close(Objective(harmonic_mean).value(joint), 0.595276)


@pytest.mark.paper
@pytest.mark.parametrize("prior", [UNIFORM, SKEWED])
@pytest.mark.parametrize(
    ("objective", "rate", "multipliers", "rows"),
    [
        (
            Objective(mean),
            None,
            [],
            [
                [0.053333, -0.026667, -0.026667],
                [-0.06, 0.08, -0.02],
                [-0.026667, -0.053333, 0.08],
            ],
        ),
        (
            LeastRecall(CLASSES),
            5,
            [0.090031, 0.244728, 0.665241],
            [
                [0.014405, -0.007202, -0.007202],
                [-0.044051, 0.058735, -0.014684],
                [-0.053219, -0.106439, 0.159658],
            ],
        ),
        (
            Objective(geometric_mean),
            None,
            [],
            [
                [0.038460, -0.019230, -0.019230],
                [-0.057690, 0.076920, -0.019230],
                [-0.038460, -0.076920, 0.115380],
            ],
        ),
        (
            Objective(harmonic_mean),
            None,
            [],
            [
                [0.025562, -0.012781, -0.012781],
                [-0.051124, 0.068166, -0.017041],
                [-0.051124, -0.102249, 0.153373],
            ],
        ),
        (
            LeastRecall(TWO_GROUPS),
            5,
            [0.182426, 0.817574],
            [
                [0.014594, -0.007297, -0.007297],
                [-0.016418, 0.021891, -0.005473],
                [-0.065406, -0.130812, 0.196218],
            ],
        ),
    ],
)
def test_logit_gradients_of_recall(objective, rate, multipliers, rows, prior):
    joint = prior[:, None] * Q
    found = objective.update(objective.initial, joint, BestResponse(rate or 1.0))
    close(found, multipliers)
    close(objective.logit_gradient(joint, found), rows)


@pytest.mark.paper
def test_sharp_best_response():
    objective = LeastRecall(CLASSES)
    multipliers = objective.update(objective.initial, JOINT, BestResponse(50))
    close(multipliers, [2.1e-9, 4.5e-5, 0.999955])
    close(objective.logit_gradient(JOINT, multipliers)[2], [-0.079996, -0.159993, 0.239989])


@pytest.mark.paper
def test_logit_gradients_under_coverage():
    objective = Covered(mean, CLASSES)
    penalty = objective.update(objective.initial, JOINT, BestResponse())
    close(penalty, [0, 0, 99.999143])
    close(objective.update(penalty, JOINT, BestResponse(temperature=0.1))[2], 68.859678)
    pure = objective.logit_gradient(JOINT, penalty) - Objective(mean).logit_gradient(JOINT, NONE)
    close(
        pure,
        [
            [-2.666644, -0.333330, 2.999974],
            [-0.999991, -1.999983, 2.999974],
            [-2.666644, -5.333288, 7.999931],
        ],
    )
    close(
        objective.logit_gradient(JOINT, penalty) / objective.scale(penalty),
        [
            [-0.025875, -0.003564, 0.029439],
            [-0.010495, -0.019010, 0.029505],
            [-0.026667, -0.053333, 0.08],
        ],
    )
    harmonic = Covered(harmonic_mean, CLASSES)
    first = harmonic.logit_gradient(JOINT, penalty)[0] / harmonic.scale(penalty)
    close(first, [-0.026150, -0.003427, 0.029576])


@pytest.mark.paper
def test_coverage_under_a_skewed_prior():
    joint = SKEWED[:, None] * Q
    close(rates(joint)[1], [0.53, 0.31, 0.16])
    objective = Covered(mean, CLASSES)
    penalty = objective.update(objective.initial, joint, BestResponse())
    close(penalty, [0, 48.658288, 99.999984])
    pure = objective.logit_gradient(joint, penalty) - Objective(mean).logit_gradient(joint, NONE)
    close(pure[0], [-5.946331, 1.689623, 4.256708])


@pytest.mark.paper
def test_gain_of_min_recall():
    joint, objective = with_recall([0.9, 0.6, 0.2]), LeastRecall(CLASSES)
    first = objective.update(objective.initial, joint, Ascent(0.1))
    close(first, [0.322273, 0.332087, 0.345640])
    close(objective.update(first, joint, Ascent(0.1)), [0.311322, 0.330573, 0.358105])
    fast = objective.update(objective.initial, joint, Ascent(1.0))
    close(fast, [0.229168, 0.309344, 0.461488])
    gain = objective.gain(PRIOR, joint, first)
    close(gain, torch.tensor([0.460389, 1.660437, 3.456400]).diag().tolist())
    parts, _ = decompose(gain)
    close(parts, torch.eye(3).tolist())


@pytest.mark.paper
def test_gain_under_coverage():
    rule, third = Ascent(0.1), torch.full((3,), 1 / 3, dtype=torch.float64)
    objective = Covered(mean, CLASSES)
    target = 0.95 / 3
    slack = torch.tensor([0.55, 0.30, 0.15], dtype=torch.float64) - target
    multipliers = rule.penalty(third, slack)
    close(multipliers, [0.31, 0.335, 0.35])
    slack = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64) - target
    clipped = rule.penalty(torch.tensor([0.02, 0.3, 0.3], dtype=torch.float64), slack)
    close(clipped, [0, 0.326667, 0.326667])

    gain = objective.gain(PRIOR, JOINT, multipliers)
    close(gain, [[0.786190, 0.335, 0.35], [0.31, 2.001667, 0.35], [0.31, 0.335, 3.683333]])
    parts, diagonal = decompose(gain)
    off_diagonal = [0.394306, 0.167361, 0.095023]
    close(parts, (torch.eye(3) + (1 - torch.eye(3)) * torch.tensor(off_diagonal)).tolist())
    close(parts.sum(1), [1.262383, 1.489329, 1.561667])
    close(diagonal.log(), [-0.240556, 0.693980, 1.303818])
    assert_close(parts @ diagonal.diag(), gain)
    close(
        gain / gain.sum(1, keepdim=True),
        [
            [0.534391, 0.227707, 0.237903],
            [0.116468, 0.752035, 0.131497],
            [0.071621, 0.077397, 0.850982],
        ],
    )


@pytest.mark.paper
def test_ascent_remembers():
    coverage = torch.tensor([16, 14, 12, 11, 10, 10, 9, 8, 6, 4], dtype=torch.float64) / 100
    objective = build_objective("mean_recall_coverage", CIFAR10)
    joint = coverage.expand(10, 10) / 10
    first = objective.update(objective.initial, joint, Ascent(0.1))
    facts = [0.0935, 0.0955, 0.0975, 0.0985, 0.0995, 0.0995, 0.1005, 0.1015, 0.1035, 0.1055]
    close(first, facts)
    second = objective.update(first, joint, Ascent(0.1))
    close(second, [0.087, 0.091, 0.095, 0.097, 0.099, 0.099, 0.101, 0.103, 0.107, 0.111])


@pytest.mark.paper
def test_head_and_tail():
    joint = with_recall([0.95, 0.93, 0.90, 0.85, 0.80, 0.75, 0.70, 0.60, 0.50, 0.30])
    objective = build_objective("min_ht_recall", CIFAR10)
    multipliers = objective.update(objective.initial, joint, Ascent(0.1))
    close(multipliers, [0.488113, 0.511887])
    gain = objective.gain(CIFAR10 / CIFAR10.sum(), joint, multipliers)
    close(gain[0, 0], 0.134502, tol=1e-5)
    close(gain[9, 9], 126.947889, tol=1e-4)  # the prior is float32 here
    close(objective.value(joint), 0.3)


def any_joint(seed, classes, draws=200):
    """A joint confusion matrix with a random prior and random rows, no entry 0."""
    draw = np.random.default_rng(seed)
    prior = draw.dirichlet(np.full(classes, 2.0))
    rows = draw.dirichlet(np.ones(classes), classes) + np.eye(classes) + 1e-3
    return torch.from_numpy(prior[:, None] * rows / rows.sum(1, keepdims=True))


def gradient_by_joint(objective, joint, multipliers):
    return torch.func.grad(lambda c: objective.surrogate(*rates(c), multipliers))(joint)


def any_objective(name, seed, classes, rule):
    """An objective on a random matrix, with the multipliers that the rule gives there."""
    counts = torch.from_numpy(np.random.default_rng(seed).integers(1, 1000, classes))
    objective, joint = build_objective(name, counts), any_joint(seed, classes)
    return objective, joint, objective.update(objective.initial, joint, rule)


RULES = [Ascent(), BestResponse(rate=5, limit=10, temperature=0.1)]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_against_autograd(name, rule):
    """By C and by the logits of its rows, each through a separate path from the entries on."""
    objective, joint, multipliers = any_objective(name, 1, 12, rule)

    def of_logits(logits):
        moved = joint.sum(1, keepdim=True) * logits.softmax(1)
        return objective.surrogate(*rates(moved), multipliers)

    gradient = objective.logit_gradient(joint, multipliers)
    point = (joint.log() + 3.0).requires_grad_()
    (expected,) = torch.autograd.grad(of_logits(point), point)
    assert_close(gradient, expected)
    at = point.detach()
    direction = torch.randn(at.shape, dtype=at.dtype, generator=torch.manual_seed(0))
    step = 1e-6 * at.abs().min()
    slope = (of_logits(at + step * direction) - of_logits(at - step * direction)) / (2 * step)
    assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_against_the_metrics(name):
    counts = np.random.default_rng(0).integers(1, 50, (12, 12)) + 40 * np.eye(12, dtype=int)
    train = np.random.default_rng(1).permutation(np.arange(1, 13))
    metrics = metrics_from_counts(counts.diagonal(), counts.sum(1), counts.sum(0), train)
    joint = joint_confusion(torch.from_numpy(counts))
    objective = build_objective(name, torch.from_numpy(train))
    assert float(objective.value(joint)) == pytest.approx(
        metrics[name.removesuffix("_coverage").removesuffix("_ht")]
        if name.endswith("coverage")
        else metrics[name]
    )
    if name.endswith("_recall_coverage"):
        expected = max(0, 0.95 / 12 - metrics["min_coverage"])
        assert float(objective.violation(joint)) == pytest.approx(expected)


def test_means_against_scipy():
    recall = torch.tensor([0.9, 0.35, 0.6, 0.05], dtype=torch.float64)
    assert float(harmonic_mean(recall)) == pytest.approx(stats.hmean(recall))
    assert float(geometric_mean(recall)) == pytest.approx(stats.gmean(recall))
    recall[1] = 0
    assert harmonic_mean(recall) == geometric_mean(recall) == 0


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(OBJECTIVES)),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**31),
    classes=st.integers(10, 20),
)
def test_invariances(name, rule, seed, classes):
    objective, joint, multipliers = any_objective(name, seed, classes, rule)
    slopes = objective.logit_gradient(joint, multipliers)
    assert_close(slopes.sum(1), torch.zeros(classes, dtype=torch.float64))
    # A recall's slope is the same under every class prior; so is the gradient along a scaled row.
    if not name.endswith("coverage"):
        other = joint * torch.linspace(1, 3, classes, dtype=torch.float64)[:, None]
        assert_close(objective.logit_gradient(other / other.sum(), multipliers), slopes)
        gradient = gradient_by_joint(objective, joint, multipliers)
        assert_close((gradient * joint).sum(1), torch.zeros(classes, dtype=torch.float64))
    # What a gain is worth under the prior of the matrix is what the gradient says, up to a constant
    # per row, which changes no decision.
    prior = joint.sum(1)
    gradient = gradient_by_joint(objective, joint, multipliers)
    gap = objective.gain(prior, joint, multipliers) - gradient
    assert_close(gap, gap[:, :1].expand_as(gap), atol=1e-9, rtol=1e-9)
    parts, diagonal = decompose(objective.gain(prior, joint, multipliers))
    assert (diagonal > 0).all()
    assert_close(parts.diagonal(), torch.ones(classes, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    payoffs=st.lists(st.floats(0, 1), min_size=2, max_size=20),
    rate=st.floats(1e-3, 1e3),
    steps=st.integers(1, 30),
)
def test_multipliers_of_a_minimum(payoffs, rate, steps):
    payoffs = torch.tensor(payoffs, dtype=torch.float64)
    multipliers = torch.full_like(payoffs, 1 / len(payoffs))
    assert_close(
        Ascent(rate).simplex(multipliers, payoffs), BestResponse(rate).simplex(NONE, payoffs)
    )
    for _ in range(steps):
        multipliers = Ascent(rate).simplex(multipliers, payoffs)
    assert float(multipliers.sum()) == pytest.approx(1)
    assert (multipliers >= FLOOR).all()
    order = payoffs.argsort()
    assert (multipliers[order].diff() <= 1e-15).all()


@settings(max_examples=40, deadline=None)
@given(slack=st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=20))
def test_multipliers_of_constraints(slack):
    slack = torch.tensor(slack, dtype=torch.float64)
    penalty = BestResponse(limit=10, temperature=0.05).penalty(NONE, slack)
    assert ((penalty >= 0) & (penalty <= 10)).all()
    assert ((penalty > 0) == (slack < 0)).all()
    stepped = Ascent(2.0).penalty(torch.full_like(slack, 0.1), slack)
    assert_close(stepped, torch.relu(0.1 - 2 * slack))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_classifier_has_nothing_to_gain_in_recall(name):
    objective = build_objective(name, CIFAR10)
    joint = joint_confusion(5 * torch.eye(10))
    multipliers = objective.update(objective.initial, joint, BestResponse())
    close(objective.value(joint), 1.0)
    close(objective.logit_gradient(joint, multipliers), torch.zeros(10, 10).tolist())


def test_smoothing_keeps_the_prior_and_lifts_zeros():
    counts = torch.tensor([[8, 2, 0], [1, 3, 0], [4, 1, 0]])
    joint = joint_confusion(counts, 0.5)
    assert_close(joint.sum(1), counts.sum(1).double() / 19)
    assert_close(joint[2] / joint[2].sum(), torch.tensor([4.5, 1.5, 0.5]).double() / 6.5)
    assert zero_recall_classes(counts) == 1
    assert Objective(harmonic_mean).value(joint_confusion(counts)) == 0
    for objective in (Objective(harmonic_mean), Objective(geometric_mean)):
        assert objective.logit_gradient(joint, NONE).isfinite().all()
        with pytest.raises(UserError, match="count_smoothing"):
            objective.logit_gradient(joint_confusion(counts), NONE)


def test_head_and_tail_follow_the_training_images_not_the_labels():
    order = torch.tensor([9, 3, 0, 7, 1, 8, 2, 6, 5, 4])
    groups = build_objective("min_ht_recall", CIFAR10[order]).groups
    assert groups[1].nonzero().flatten().tolist() == [0]  # label 0 has the 15 images here
    assert_close(groups.sum(1), torch.ones(2, dtype=torch.float64))
    groups = build_objective("min_ht_recall", torch.arange(14, 0, -1)).groups
    assert (groups > 0).sum(1).tolist() == [12, 2]


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"'min_recal'.*'min_recall'"):
        build_objective("min_recal", CIFAR10)
    with pytest.raises(UserError, match="10 classes"):
        build_objective("min_ht_recall", CIFAR10[:9])
    with pytest.raises(UserError, match="coverage_target"):
        build_objective("mean_recall_coverage", CIFAR10, 1.2)
    with pytest.raises(UserError, match=r"class 1\b"):
        joint_confusion(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 2]]))
    with pytest.raises(UserError, match="not finite"):
        joint_confusion(torch.tensor([[1.0, torch.nan], [0, 1]]))
    with pytest.raises(UserError, match="multiplier"):
        Covered(mean, CLASSES).update(torch.full((3,), torch.nan), JOINT, Ascent())

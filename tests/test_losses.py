import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.losses import (
    LOSSES,
    balanced_softmax_loss,
    bind_loss,
    cdt_loss,
    check_counts,
    class_balanced_weights,
    cross_entropy_loss,
    focal_loss,
    focal_official_loss,
    label_aware_smoothing,
    label_aware_smoothing_loss,
    ldam_loss,
    ldam_margins,
    logit_adjusted_loss,
    vs_divisors,
    vs_loss,
    vs_offsets,
)

# CIFAR-10-LT and CIFAR-100-LT at imbalance factor 100.
CIFAR10 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
CIFAR100 = torch.tensor([int(500 * 0.01 ** (c / 99)) for c in range(100)])

# A toy batch, small enough for the losses to be worked out by hand.
COUNTS = torch.tensor([5000, 500, 50])
LOGITS = torch.tensor([[2, 1, 0.1], [0.5, 1.5, -0.5], [1.2, -0.3, 0.7], [0, 0.3, -0.2]])
COSINES = torch.tensor([[0.6, 0.2, -0.1], [0.1, 0.5, -0.3], [0.4, -0.2, 0.3], [0.7, 0, -0.4]])
LABELS = torch.tensor([2, 0, 1, 0])
WEIGHTS = class_balanced_weights(COUNTS)


def close(actual, expected, tol=1e-6):
    assert_close(torch.as_tensor(actual), torch.tensor(expected), atol=tol, rtol=0)


@pytest.mark.paper
def test_ldam_margins():
    facts = [0.158114, 0.179697, 0.204238, 0.232091, 0.263829]
    facts += [0.299768, 0.340675, 0.387221, 0.440497, 0.5]
    close(ldam_margins(CIFAR10), facts)
    close(ldam_margins(CIFAR10, max_margin=0.3), [0.6 * m for m in facts])
    close(ldam_margins(CIFAR100)[[0, 49, 50, 99]], [0.158114, 0.279782, 0.284055, 0.5])


@pytest.mark.paper
def test_class_balanced_weights():
    facts = [0.050611, 0.076900, 0.121134, 0.195037, 0.318805]
    facts += [0.524590, 0.868349, 1.442627, 2.409223, 3.992724]
    close(class_balanced_weights(CIFAR10), facts)
    weights = class_balanced_weights(CIFAR100, beta=0.9999)
    facts = [0.044876, 0.046986, 0.430234, 0.457055, 4.378313]
    close(weights[[0, 1, 49, 50, 99]], facts)
    close(weights.sum(), 100.0, tol=1e-4)
    close(weights.max() / weights.min(), 97.565, tol=1e-3)
    close(WEIGHTS, [0.034107, 0.275167, 2.690725])
    close(class_balanced_weights(CIFAR10, beta=0), [1.0] * 10)
    close(class_balanced_weights(torch.tensor([5000, 50])), [0.025034, 1.974966])


@pytest.mark.paper
def test_vs_offsets():
    facts = [-0.908742, -1.420568, -1.932618, -2.444001, -2.956685]
    facts += [-3.467511, -3.979198, -4.491462, -5.007095, -5.513913]
    close(vs_offsets(CIFAR10, tau=1), facts)
    close(vs_offsets(CIFAR10, tau=1.25), [1.25 * iota for iota in facts], tol=2e-6)
    close(vs_offsets(CIFAR100, 1)[[0, 49, 50, 99]], [-3.077036, -5.359818, -5.420443, -7.682206])


@pytest.mark.paper
@pytest.mark.parametrize(
    ("gamma", "facts"),
    [
        (
            0.05,
            "1 1.025922 1.052527 1.079786 1.107823 1.136483 1.165934 1.196183 1.227424 1.258925",
        ),
        (
            0.15,
            "1 1.079798 1.166003 1.258964 1.359601 1.467874 1.584975 1.711565 1.849200 1.995262",
        ),
        (0.3, "1 1.165964 1.359562 1.584989 1.848515 2.154655 2.512144 2.929453 3.419539 3.981072"),
    ],
)
def test_vs_divisors(gamma, facts):
    close(vs_divisors(CIFAR10, gamma), [float(fact) for fact in facts.split()])


@pytest.mark.paper
@pytest.mark.parametrize(
    ("name", "constants", "plain", "weighted"),
    [
        ("cross_entropy_loss", {}, 1.745513, 2.274417),
        ("logit_adjusted_loss", {}, 2.687615, 6.153910),
        ("balanced_softmax_loss", {}, 2.687615, 6.153910),
        ("cdt_loss", {"gamma": 0.3}, 1.572127, 2.216022),
        ("vs_loss", {"gamma": 0.3, "tau": 1.0}, 2.632423, 6.192829),
        ("vs_loss", {"gamma": 0.15, "tau": 1.25}, 3.048249, 7.240509),
        ("vs_loss", {}, 3.048249, 7.240509),
        ("vs_loss", {"gamma": 0.05, "tau": 0.75}, 2.317464, 5.121976),
        ("focal_loss", {}, 1.447154, 1.547886),
        ("focal_loss", {"gamma": 2.0}, 1.212039, 1.389559),
        ("focal_official_loss", {"gamma": 1.0}, 1.447154, 1.620130),
        ("focal_official_loss", {"gamma": 2.0}, 1.212039, 1.580522),
    ],
)
def test_toy_batch(name, constants, plain, weighted):
    loss = bind_loss(name, constants)
    close(loss(LOGITS, LABELS, COUNTS), plain)
    close(loss(LOGITS, LABELS, COUNTS, weight=WEIGHTS), weighted)


@pytest.mark.paper
def test_balanced_softmax_of_equal_logits_is_the_surprise_of_the_prior():
    counts, zeros = torch.tensor([100, 10]), torch.zeros(1, 2)
    losses = [balanced_softmax_loss(zeros, torch.tensor([y]), counts) for y in (0, 1)]
    close(torch.stack(losses), [0.095310, 2.397895])


@pytest.mark.paper
def test_toy_batch_by_sample():
    losses = [
        cross_entropy_loss(z[None], y[None], COUNTS) for z, y in zip(LOGITS, LABELS, strict=True)
    ]
    close(torch.stack(losses), [2.317030, 1.407606, 2.104131, 1.153287])


@pytest.mark.paper
@pytest.mark.parametrize(
    ("max_margin", "plain", "weighted"), [(0.5, 19.806783, 34.515803), (0.3, 16.988929, 28.867521)]
)
def test_ldam_toy_batch(max_margin, plain, weighted):
    close(ldam_loss(COSINES, LABELS, COUNTS, max_margin=max_margin), plain, tol=5e-6)
    loss = ldam_loss(COSINES, LABELS, COUNTS, max_margin=max_margin, weight=WEIGHTS)
    close(loss, weighted, tol=5e-6)


@pytest.mark.paper
def test_ldam_by_sample():
    losses = [
        ldam_loss(x[None], y[None], COUNTS) for x, y in zip(COSINES[:3], LABELS[:3], strict=True)
    ]
    close(torch.stack(losses), [36.000006, 16.743417, 26.483707], tol=5e-6)


def batch(seed, size=6, classes=5):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=draw)
    counts = torch.randint(1, 1000, (classes,), generator=draw)
    soft = torch.rand(size, classes, generator=draw, dtype=torch.float64)
    weight = torch.rand(classes, generator=draw, dtype=torch.float64) + 0.1
    return logits, labels, counts, soft / soft.sum(1, keepdim=True), weight


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_matches_torch_and_sklearn(weighted):
    logits, labels, counts, _, weight = batch(0)
    loss = cross_entropy_loss(logits, labels, counts, weight=weight if weighted else None)
    assert_close(loss, F.cross_entropy(logits, labels, weight=weight if weighted else None))
    sample_weight = weight[labels].numpy() if weighted else None
    p = logits.softmax(1).numpy()
    oracle = log_loss(labels.numpy(), p, labels=range(5), sample_weight=sample_weight)
    assert float(loss) == pytest.approx(oracle)


@pytest.mark.paper
def test_label_aware_smoothing_has_the_numbers_of_its_equation():
    counts = torch.tensor([500.0, 252.5, 5.0])
    amounts = label_aware_smoothing(counts, 0.4, 0.1)
    assert_close(amounts, torch.tensor([0.4, 0.312132, 0.1]), atol=1e-6, rtol=0)
    for label, expected in enumerate((0.772878, 2.031457, 2.172878)):
        logits, target = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([label])
        loss = label_aware_smoothing_loss(logits, target, counts, head=0.4, tail=0.1)
        assert float(loss) == pytest.approx(expected, abs=1e-6)
        even = label_aware_smoothing_loss(logits, target, counts, head=0.2, tail=0.2)
        smoothed = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.2)
        assert_close(even, smoothed)
    assert label_aware_smoothing(torch.full((3,), 7), 0.4, 0.1).tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("name", LOSSES)
def test_against_slow_numpy(name):
    """Every loss, weighted, with soft targets, sample by sample from its equation."""
    logits, _, counts, soft, weight = batch(1)
    z, t, n, w = (x.numpy().astype(float) for x in (logits, soft, counts, weight))
    total, weights = 0.0, 0.0
    for zi, ti in zip(z, t, strict=True):
        wi = (ti * w).sum()
        if name == "label_aware_smoothing_loss":
            share = (n - n.min()) / (n.max() - n.min())
            smoothing = (ti * 0.3 * np.sin(np.pi / 2 * share)).sum()
            ti = (1 - smoothing) * ti + smoothing / len(ti)
        scores = {
            "ldam_loss": 30 * (zi - ti * 0.5 * (n.min() / n) ** 0.25),
            "logit_adjusted_loss": zi + np.log(n / n.sum()),
            "balanced_softmax_loss": zi + np.log(n),
            "cdt_loss": zi * (n / n.max()) ** 0.3,
            "vs_loss": zi * (n / n.max()) ** 0.15 + 1.25 * np.log(n / n.sum()),
        }.get(name, zi)
        loss = (ti * (np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores)).sum()
        if name == "focal_loss":
            total += wi * (1 - np.exp(-loss)) * loss
            weights += 1
        elif name == "focal_official_loss":
            total += (1 - np.exp(-wi * loss)) * wi * loss
            weights += 1
        else:
            total += wi * loss
            weights += wi
    loss = LOSSES[name](logits, soft, counts.double(), weight=weight)
    assert float(loss) == pytest.approx(total / weights, rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradients(name, soft):
    logits, labels, counts, probabilities, weight = batch(2)
    logits = (logits * 0.2).requires_grad_()
    targets = probabilities if soft else labels
    assert torch.autograd.gradcheck(
        lambda z: LOSSES[name](z, targets, counts.double(), weight=weight), logits
    )


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), weighted=st.booleans(), classes=st.integers(2, 7))
def test_one_hot_targets_equal_labels(name, seed, weighted, classes):
    # B = C among the draws: a label vector must never broadcast against the logits.
    logits, labels, counts, _, weight = batch(seed, size=5, classes=classes)
    weight = weight if weighted else None
    one_hot = F.one_hot(labels, classes).float()
    hard = LOSSES[name](logits, labels, counts, weight=weight)
    assert_close(LOSSES[name](logits, one_hot, counts, weight=weight), hard)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    gamma=st.floats(0, 1),
    tau=st.floats(0, 2),
    weighted=st.booleans(),
)
def test_special_cases(seed, gamma, tau, weighted):
    logits, labels, counts, _, weight = batch(seed)
    args = (logits, labels, counts)
    kw = {"weight": weight if weighted else None}
    plain = cross_entropy_loss(*args, **kw)
    assert_close(vs_loss(*args, gamma=0, tau=tau, **kw), logit_adjusted_loss(*args, tau=tau, **kw))
    assert_close(vs_loss(*args, gamma=gamma, tau=0, **kw), cdt_loss(*args, gamma=gamma, **kw))
    assert_close(vs_loss(*args, gamma=0, tau=0, **kw), plain)
    # log N, which balanced softmax leaves out, is rounded in float32 for integer counts.
    assert_close(
        logit_adjusted_loss(*args, tau=1, **kw),
        balanced_softmax_loss(*args, **kw),
        atol=1e-5,
        rtol=0,
    )
    assert_close(ldam_loss(*args, max_margin=0, scale=1, **kw), plain)
    assert_close(focal_loss(*args, gamma=0), cross_entropy_loss(*args))
    assert_close(focal_loss(*args, gamma=gamma), focal_official_loss(*args, gamma=gamma))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_weighted_mean_ignores_the_scale_of_the_weights(seed, scale):
    logits, labels, counts, soft, weight = batch(seed)
    for targets in (labels, soft):
        loss = vs_loss(logits, targets, counts, weight=weight)
        assert_close(vs_loss(logits, targets, counts, weight=scale * weight), loss)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=50),
    beta=st.sampled_from([0.0, 0.5, 0.99, 0.9999, 0.999999]),
)
def test_weights_sum_to_classes_and_fall_with_the_count(counts, beta):
    weights = class_balanced_weights(torch.tensor(counts), beta)
    assert float(weights.sum()) == pytest.approx(len(counts), rel=1e-5)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(weights.numpy()[order]) <= 0).all()


def test_soft_weighted_loss_is_smallest_at_the_target():
    _, _, counts, soft, weight = batch(3)
    logits = soft.log().requires_grad_()
    cross_entropy_loss(logits, soft, counts, weight=weight).backward()
    assert_close(logits.grad, torch.zeros_like(logits), atol=1e-12, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("loss", [focal_loss, focal_official_loss])
def test_focal_gradient_is_finite_at_a_certain_prediction(loss, gamma):
    logits = torch.tensor([[200.0, 0, 0]], requires_grad=True)
    loss(logits, torch.tensor([0]), COUNTS, gamma=gamma).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    logits = COSINES.to(dtype)
    for targets in (LABELS, F.one_hot(LABELS, 3).to(dtype)):
        loss = LOSSES[name](logits, targets, COUNTS, weight=WEIGHTS)
        assert loss.dtype == torch.float32
        assert_close(loss, LOSSES[name](logits.float(), LABELS, COUNTS, weight=WEIGHTS))


def test_soft_weights_under_autocast():
    _, _, _, soft, weight = batch(4)
    logits, soft, weight = COSINES.repeat(2, 2)[:6, :5], soft.float(), weight.float()
    expected = cross_entropy_loss(logits, soft, CIFAR10[:5], weight=weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy_loss(logits, soft, CIFAR10[:5], weight=weight)
    assert_close(loss, expected)


def test_bind_loss_keeps_constants_and_weight():
    bound = bind_loss("vs_loss", {"gamma": 0.05, "tau": 0.75})
    expected = vs_loss(LOGITS, LABELS, COUNTS, gamma=0.05, tau=0.75, weight=WEIGHTS)
    assert_close(bound(LOGITS, LABELS, COUNTS, weight=WEIGHTS), expected)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("vs_los", {}, "vs_los'.*'vs_loss'"),
        ("vs_loss", {"gama": 0.1}, "vs_loss' 'gama'.*'gamma'"),
        ("vs_loss", {"weight": 1.0}, "weight"),
        ("balanced_softmax_loss", {"tau": 1.0}, "balanced_softmax_loss"),
    ],
)
def test_bind_loss_names_the_mistake(name, args, message):
    with pytest.raises(UserError, match=message):
        bind_loss(name, args)


def test_counts_are_checked_once():
    check_counts(CIFAR10)
    with pytest.raises(UserError, match=r"class 1\b"):
        check_counts(torch.tensor([3, 0, 2]))
    with pytest.raises(UserError, match=r"shape \(C,\)"):
        check_counts(torch.ones(2, 2))
    with pytest.raises(UserError, match="class counts"):
        class_balanced_weights(torch.tensor([5, 0]))
    with pytest.raises(UserError, match="beta"):
        class_balanced_weights(CIFAR10, beta=1.0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_step_reads_nothing_back_from_the_device(name, soft):
    # Meta tensors have no values, so that reading one fails.
    targets = F.one_hot(LABELS, 3).float() if soft else LABELS
    args = (tensor.to("meta") for tensor in (LOGITS, targets, COUNTS))
    assert LOSSES[name](*args, weight=WEIGHTS.to("meta")).is_meta

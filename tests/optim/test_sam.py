"""SAM, against a slow reference and under precisions, ranks and schedules."""

import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from rule_cases import Net, assert_same, draw, flat, gradients, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltbench.errors import UserError
from ltbench.optim.sam import (
    LPFSGD,
    PGD,
    SAM,
    Plain,
    ascend,
    batch_norm_frozen,
    weights_restored,
)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [
        (Plain(), (-0.00002, 1.09998), (-0.900018, 1.299938)),
        (SAM(rho=0.0), (-0.00002, 1.09998), (-0.900018, 1.299938)),
        (SAM(rho=0.05), (-0.049772, 1.099482), (-0.924174, 1.294388)),
        (SAM(rho=0.5), (-0.497539, 1.095005), (-0.859461, 1.279241)),
        (SAM(rho=0.5, adaptive=True), (-0.497539, 1.095005), (-1.123887, 1.266121)),
    ],
)
def test_two_steps_on_a_saddle(rule, first, second):
    """L = w^T diag(10, -1) w / 2 from (1, 1), lr 0.1, momentum 0.9, decay 2e-4."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    curvature = torch.tensor([10.0, -1.0])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    for expected in (first, second):
        run(rule, module, lambda part: (curvature * module.w**2).sum() / 2)
        optimizer.step()
        assert module.w.tolist() == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("bn_update", ["first", "both"])
def test_sam_against_a_slow_reference_over_steps(adaptive, bn_update):
    ours, theirs = Net(), Net()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    our_sgd = torch.optim.SGD(ours.parameters(), **options)
    their_sgd = torch.optim.SGD(theirs.parameters(), **options)
    rule = SAM(rho=0.7, adaptive=adaptive, bn_update=bn_update)
    for _ in range(4):
        loss = run(rule, ours, ours.loss_of)
        our_sgd.step()

        their_sgd.zero_grad()
        clean = theirs.loss_of()
        clean.backward()
        buffers = theirs.buffers_now()
        weights = [p.detach().clone() for p in theirs.used()]
        grads = [p.grad.clone() for p in theirs.used()]
        scaled = [w.abs() * g if adaptive else g for w, g in zip(weights, grads, strict=True)]
        norm = torch.sqrt(sum(s.double().square().sum() for s in scaled)).float()
        with torch.no_grad():
            for p, w, s in zip(theirs.used(), weights, scaled, strict=True):
                p.copy_(w + 0.7 * (w.abs() * s if adaptive else s) / (norm + 1e-12))
        their_sgd.zero_grad()
        perturbed = theirs.loss_of()
        perturbed.backward()
        if bn_update == "first":
            for name, buffer in theirs.named_buffers():
                buffer.copy_(buffers[name])
        with torch.no_grad():
            for p, w in zip(theirs.used(), weights, strict=True):
                p.copy_(w)
        their_sgd.step()

        torch.testing.assert_close(loss, clean.detach())
        torch.testing.assert_close(rule.diagnostics["gradient_norm"], norm)
        torch.testing.assert_close(rule.diagnostics["perturbed_loss"], perturbed.detach())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=2e-6, rtol=1e-5)
    assert ours.bn.num_batches_tracked == (4 if bn_update == "first" else 8)


def test_bn_update_changes_buffers_only():
    first, both = Net(), Net()
    run(SAM(0.5, bn_update="first"), first, first.loss_of)
    run(SAM(0.5, bn_update="both"), both, both.loss_of)
    assert_same(gradients(first), gradients(both))
    assert not torch.equal(first.bn.running_mean, both.bn.running_mean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_gradient_that_is_not_finite_perturbs_nothing(bad, adaptive):
    net = Net()
    net.loss_of().backward()
    net.conv.weight.grad[0, 0, 0, 0] = bad
    before = flat(net.parameters())
    norm = ascend(net.used(), 0.5, adaptive)
    assert not norm.isfinite()
    assert torch.equal(flat(net.parameters()), before)


class Made(TorchDispatchMode):
    """The sizes of what is made, and not changed in place."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = {place for place, _ in self.memory((args, kwargs))}
        self.sizes += [size for place, size in self.memory(found) if place not in given]
        return found

    def memory(self, found):
        tensors = (leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor))
        return [(t.untyped_storage().data_ptr(), t.numel()) for t in tensors]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_holds_one_copy_of_the_weights_beside_them(adaptive):
    net = Net()
    net.loss_of().backward()
    weights = net.used()
    with Made() as ascent:
        ascend(weights, 0.5, adaptive)
    assert max(ascent.sizes) == len(weights)  # their norms: nothing is as large as the weights
    with torch.no_grad(), Made() as around, weights_restored(weights):
        pass
    assert sum(around.sizes) == flat(weights).numel()


def test_an_overflowing_backward_pass_leaves_weights_and_overflows_again():
    net = Net()
    before = flat(net.parameters())

    def overflowing(loss):
        (loss * 1e38 * 1e30).backward()

    run(SAM(0.5, bn_update="both"), net, net.loss_of, backward=overflowing)
    assert torch.equal(flat(net.parameters()), before)
    assert not flat(gradients(net)).isfinite().all()
    assert all(b.isfinite().all() for b in net.buffers())


def test_the_ascent_does_not_depend_on_a_loss_scale():
    plain, scaled = Net(), Net()
    run(SAM(0.5), plain, plain.loss_of)
    run(SAM(0.5), scaled, scaled.loss_of, backward=lambda loss: (loss * 2.0**16).backward())
    torch.testing.assert_close(flat(gradients(scaled)) / 2**16, flat(gradients(plain)))


@pytest.mark.parametrize("rule", [SAM(0.9), LPFSGD(0.3, parts=2), PGD(0.1), Plain()])
@pytest.mark.parametrize("failing_pass", [1, 2])
def test_weights_and_norms_survive_an_exception(rule, failing_pass):
    net = Net()
    before = flat(net.parameters())
    passes = []

    def loss_of(part):
        passes.append(part)
        if len(passes) == failing_pass:
            raise KeyboardInterrupt
        return net.loss_of(part)

    with contextlib.suppress(KeyboardInterrupt):
        run(rule, net, loss_of, batch_size=8)
    assert torch.equal(flat(net.parameters()), before)
    assert net.bn.track_running_stats


@pytest.mark.parametrize("rule", [SAM(0.9), SAM(0.9, adaptive=True), LPFSGD(0.3, parts=3)])
def test_weights_are_restored_bit_for_bit(rule):
    net = Net()
    before = flat(net.parameters())
    run(rule, net, net.loss_of, batch_size=8)
    assert torch.equal(flat(net.parameters()), before)
    assert net.unused.weight.grad is None


@pytest.mark.paper
def test_first_order_expansion_along_an_eigenvector():
    """<v, g'> = (1 + rho lambda / ||g||) <v, g>, to second order in rho, on a real loss."""
    net = Net().double()
    net.images = net.images.double()
    shapes = [p.shape for p in net.used()]
    names = [name for name, _ in net.named_parameters() if not name.startswith("unused")]

    def loss_at(w):
        parts = w.split([s.numel() for s in shapes])
        weights = {n: q.view(s) for n, q, s in zip(names, parts, shapes, strict=True)}
        conv = F.conv2d(net.images, weights["conv.weight"])
        x = F.batch_norm(conv, None, None, weights["bn.weight"], weights["bn.bias"], True)
        logits = F.relu(x).mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
        return F.cross_entropy(logits, net.targets)

    hessian = torch.autograd.functional.hessian(loss_at, flat(net.used()))
    values, vectors = torch.linalg.eigh(hessian)
    assert values[0] < -1e-3  # a saddle direction is among those compared

    def loss_of(part):
        return loss_at(torch.cat([p.flatten() for p in net.used()]))

    run(Plain(), net, loss_of)
    gradient = flat(gradients(net))
    rho = 1e-4
    run(SAM(rho), net, loss_of)
    measured = vectors.T @ flat(gradients(net))
    expected = (1 + rho * values / gradient.norm()) * (vectors.T @ gradient)
    torch.testing.assert_close(measured, expected, atol=30 * rho**2, rtol=0)
    linear_term = (expected - vectors.T @ gradient).abs().max()
    assert linear_term > 100 * (measured - expected).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_the_second_pass_sees_perturbed_weights_under_autocast(dtype):
    """Autocast caches low-precision weights for as long as its context is open."""
    net = Net()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        rule = SAM(2.0, bn_update="both")
        clean = run(rule, net, net.loss_of)
        after = net.loss_of().detach()

    moved = copy.deepcopy(net)
    moved.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        moved.loss_of().backward()
    ascend(moved.used(), 2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        expected = moved.loss_of().detach()
    assert torch.equal(after, clean)
    assert (expected - clean).abs() > 0.1
    torch.testing.assert_close(rule.diagnostics["perturbed_loss"], expected)


def test_dropout_draws_the_same_mask_in_both_passes():
    net = Net(dropout=0.5)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        loss = run(SAM(0.0, bn_update="both"), net, net.loss_of)
        state = torch.get_rng_state()
        sam = gradients(net)
        torch.manual_seed(3)
        assert torch.equal(run(Plain(), net, net.loss_of), loss)
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(sam, gradients(net))


def test_old_gradients_are_dropped():
    net, fresh = Net(), Net()
    for rule in (Plain(), SAM(0.1), LPFSGD(0.1), PGD(0.1)):
        run(rule, net, net.loss_of, batch_size=8)
        run(rule, fresh, fresh.loss_of, batch_size=8)
        run(rule, fresh, fresh.loss_of, batch_size=8)
        assert_same(gradients(net), gradients(fresh))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Plain(), [True]),
        (SAM(0.1), [True, True]),
        (SAM(0.1, sync_ascent=False), [False, True]),
        (LPFSGD(0.1, parts=3), [False, False, True]),
        (PGD(0.1), [True]),
    ],
)
def test_ranks_average_only_where_they_should(rule, expected):
    net = Net()
    averaged = [True]

    @contextlib.contextmanager
    def no_sync():
        averaged[0] = False
        yield
        averaged[0] = True

    seen = []

    def backward(loss):
        seen.append(averaged[0])
        loss.backward()

    run(rule, net, net.loss_of, 8, backward=backward, no_sync=no_sync)
    assert seen == expected


def test_radius_schedules():
    assert SAM(0.3).radius(180, 200) == 0.3
    paper = SAM([(0, 0.05), (5 / 90, 0.1), (60 / 90, 0.5), (75 / 90, 0.6)])
    by_epoch = [paper.radius(epoch, 90) for epoch in range(90)]
    assert by_epoch == [0.05] * 5 + [0.1] * 55 + [0.5] * 15 + [0.6] * 15
    whole_epochs = SAM([(0, 0.05), (5, 0.1), (60, 0.5), (75, 0.6)])
    assert [whole_epochs.radius(epoch, 90) for epoch in range(90)] == by_epoch
    ramp = SAM([(0, 0.05), (0.5, 0.8)], schedule="linear")
    radii = [ramp.radius(epoch, 100) for epoch in (0, 25, 50, 90)]
    assert radii == pytest.approx([0.05, 0.425, 0.8, 0.8])
    net = Net()
    run(paper, net, net.loss_of, epoch=70)
    assert paper.diagnostics["rho"] == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: SAM(-0.1),
        lambda: SAM(math.nan),
        lambda: SAM([]),
        lambda: SAM([(0.1, 0.5)]),
        lambda: SAM([(0, 0.1), (0.5, 0.2), (0.5, 0.3)]),
        lambda: SAM([(0, 0.1), (1.5, 0.2)]),
        lambda: SAM([(0, 0.1), (9, 0.2), (5, 0.3)]),
        lambda: LPFSGD(parts=0),
        lambda: LPFSGD(sigma=-1),
        lambda: PGD(sigma=-1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("training", [True, False])
def test_frozen_batch_norm_computes_the_same_and_keeps_its_buffers(training):
    net = Net().train(training)
    free = copy.deepcopy(net)
    untracked = nn.BatchNorm2d(2, track_running_stats=False)
    before = net.buffers_now()
    with batch_norm_frozen(nn.ModuleList([net, untracked])):
        loss = net.loss_of()
        net.bn(torch.full((2, 6, 2, 2), math.nan))
    assert torch.equal(loss, free.loss_of())
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert net.bn.track_running_stats
    assert not untracked.track_running_stats


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_channels_last_net_gives_the_same_step():
    plain, compiled = Net(), Net()
    compiled.to(memory_format=torch.channels_last)
    compiled.images = compiled.images.to(memory_format=torch.channels_last)
    loss_of = torch.compile(compiled.loss_of, backend="aot_eager")
    for _ in range(2):
        run(SAM(0.5), plain, plain.loss_of)
        run(SAM(0.5), compiled, loss_of)
    torch.testing.assert_close(flat(gradients(compiled)), flat(gradients(plain)))
    torch.testing.assert_close(compiled.buffers_now(), plain.buffers_now())


def test_weights_restored_keeps_strides_and_identity():
    weight = nn.Parameter(draw(4, 3, 2, 2).to(memory_format=torch.channels_last))
    before, pointer = weight.detach().clone(), weight.data_ptr()
    with weights_restored([weight]), torch.no_grad():
        weight.mul_(math.inf)
    assert torch.equal(weight, before)
    assert weight.data_ptr() == pointer
    assert weight.is_contiguous(memory_format=torch.channels_last)

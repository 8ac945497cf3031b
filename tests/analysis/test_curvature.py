import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltbench.analysis.curvature import MeanLoss
from ltbench.analysis.lanczos import lanczos, rademacher
from ltbench.analysis.second_order import second_order
from ltbench.errors import UserError
from ltbench.models import build_backbone

DRAW = torch.Generator().manual_seed(0)


def conv_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return net.double().eval()


def data(images=7, size=6, channels=2, classes=3):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, size, size, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, classes, (images,), generator=draw)


def mean_loss(net, images, labels, batch=3):
    def batches():
        for at in range(0, len(labels), batch):
            yield {"image": images[at : at + batch], "label": labels[at : at + batch]}

    return MeanLoss(
        [p for p in net.parameters() if p.requires_grad],
        batches,
        lambda b: F.cross_entropy(net(b["image"]), b["label"]),
        lambda b: len(b["label"]) / len(labels),
    )


def exact_hessian(net, images, labels):
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def loss(vector):
        pieces = vector.split([shape.numel() for shape in shapes])
        parameters = {n: v.view(s) for n, v, s in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, parameters, (images,)), labels)

    return torch.autograd.functional.hessian(loss, flat)


@pytest.fixture(scope="module")
def case():
    net, (images, labels) = conv_net(), data()
    return net, images, labels, exact_hessian(net, images, labels)


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_products_are_those_of_the_exact_hessian_whatever_the_batch(case, batch):
    net, images, labels, exact = case
    target = mean_loss(net, images, labels, batch)
    assert target.size == len(exact)
    vectors = torch.randn(3, target.size, generator=DRAW, dtype=torch.float64)
    assert torch.allclose(target.products(vectors), vectors @ exact, atol=1e-10)


class Entangled(nn.Module):
    """Batch norm before any convolution, twice behind one, behind one whose output was changed
    in place, and a convolution used without it.
    """

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)
        self.one, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.changed, self.after = nn.Conv2d(3, 3, 2), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 2)

    def forward(self, x):
        raw = self.conv(self.first(x))
        mixed = torch.tanh(self.one(raw)) * torch.tanh(self.other(raw) + raw)
        changed = self.after(torch.tanh_(self.changed(mixed)))
        return self.last(changed).mean((2, 3))


def test_batch_norm_folds_into_the_convolution_before_it_and_no_other():
    torch.manual_seed(0)
    net, (images, labels) = Entangled(), data()
    for module in (net.first, net.one, net.other, net.after):
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
    net = net.double().eval()
    exact = exact_hessian(net, images, labels)
    target = mean_loss(net, images, labels)
    vectors = torch.randn(3, target.size, generator=DRAW, dtype=torch.float64)
    assert torch.allclose(target.products(vectors), vectors @ exact, atol=1e-10)


@pytest.mark.parametrize("frozen", [(3,), (5,), (3, 4), (0, 1)])
def test_frozen_layers_take_no_part(case, frozen):
    net, (images, labels) = conv_net(), data()
    for i in frozen:
        net[i].requires_grad_(False)
    trained = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()])
    target = mean_loss(net, images, labels)
    vectors = torch.randn(3, target.size, generator=DRAW, dtype=torch.float64)
    exact = case[-1][trained][:, trained]
    assert torch.allclose(target.products(vectors), vectors @ exact, atol=1e-10)


def test_a_network_without_a_second_derivative_is_refused():
    net, (images, labels) = conv_net(), data()
    net[2] = nn.Hardsigmoid()
    target = mean_loss(net, images, labels)
    with pytest.raises(UserError, match="hardsigmoid"):
        target.products(torch.ones(1, target.size, dtype=torch.float64))


def test_the_graph_of_a_batch_does_not_outlive_it():
    net, (images, _) = conv_net(), data()
    mark = frozenset("m")
    alive = weakref.ref(mark)
    with second_order():
        hidden = net[:3](images)
        hidden.grad_fn.metadata["mark"] = mark
        hidden = net[3:5](hidden)
        del mark, hidden
        assert alive() is None


def test_lanczos_finds_the_exact_eigenvalues_of_a_small_network(case):
    net, images, labels, exact = case
    target = mean_loss(net, images, labels)
    start = rademacher(target.size, 0).double()[None]
    (result,) = lanczos(target.products, start, 60)
    values = torch.linalg.eigvalsh(exact)
    assert values[0] < -1e-3  # the case is a saddle, or it would show little
    assert result.nodes[0] == pytest.approx(float(values[0]), abs=1e-8)
    assert result.nodes[-1] == pytest.approx(float(values[-1]), abs=1e-8)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet32_cifar", {}),
        ("deit_tiny_distilled_patch4_32", {"depth": 2, "embed_dim": 12, "num_heads": 2}),
    ],
)
def test_products_of_real_networks_are_torchs_own(name, sizes):
    torch.manual_seed(0)
    net = build_backbone(name, 3, **sizes).double().eval()
    images, labels = data(2, 32, 3)
    target = mean_loss(net, images, labels)
    pair = torch.randn(2, target.size, generator=DRAW, dtype=torch.float64)
    result = target.products(pair)
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(net(images), labels)
        slope = torch.autograd.grad(loss, target.parameters, create_graph=True)
    flat = torch.cat([s.reshape(-1) for s in slope])
    for vector, product in zip(pair, result, strict=True):
        exact = torch.autograd.grad(flat, target.parameters, vector, retain_graph=True)
        exact = torch.cat([e.reshape(-1) for e in exact])
        assert exact.norm() > 0
        assert (product - exact).norm() / exact.norm() < 1e-10


def test_a_parameter_that_plays_no_part_has_no_curvature():
    net, (images, labels) = conv_net(), data()
    net.register_parameter("idle", nn.Parameter(torch.ones(5, dtype=torch.float64)))
    target = mean_loss(net, images, labels)
    product = target.products(torch.ones(1, target.size, dtype=torch.float64))[0]
    places = torch.cat(
        [torch.full((p.numel(),), float(n == "idle")) for n, p in net.named_parameters()]
    ).bool()
    assert (product[places] == 0).all()
    assert (product[~places] != 0).any()


def test_what_is_spelled_out_leaves_values_and_gradients_as_they_are():
    net, (images, labels) = conv_net(), data()

    def loss_and_gradients():
        loss = F.cross_entropy(net(images), labels)
        return loss, *torch.autograd.grad(loss, list(net.parameters()))

    plain = loss_and_gradients()
    with second_order():
        spelled = loss_and_gradients()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(plain, spelled, strict=True))
    before = net[1].running_mean.clone()
    assert torch.equal(before, net[1].running_mean)


def test_moving_there_and_back_adds_a_vector_to_all_parameters():
    net, (images, labels) = conv_net(), data()
    target = mean_loss(net, images, labels)
    before = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    step = torch.arange(target.size, dtype=torch.float64)
    target.move(step)
    after = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    assert torch.equal(after, before + step)


def test_the_value_is_the_mean_over_all_images():
    net, (images, labels) = conv_net(), data()
    whole = F.cross_entropy(net(images), labels).detach()
    assert mean_loss(net, images, labels, 2).value() == pytest.approx(float(whole), rel=1e-12)

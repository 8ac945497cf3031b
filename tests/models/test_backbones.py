import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ltbench.errors import UserError
from ltbench.models import NormedLinear, build_backbone

OURS = ["resnet32_cifar", "wrn_28_2", "wrn_28_10"]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "head", "expected"),
    [
        ("resnet32_cifar", 10, "linear", 464_154),
        ("resnet32_cifar", 100, "linear", 470_004),
        ("resnet32_cifar", 10, "cosine", 464_144),
        ("resnet32_cifar", 100, "cosine", 469_904),
        ("wrn_28_2", 10, "linear", 1_467_610),
        ("wrn_28_10", 10, "linear", 36_479_194),
    ],
)
def test_parameter_counts_are_the_published_ones(name, num_classes, head, expected):
    assert parameters(build_backbone(name, num_classes, head=head)) == expected


def test_resnet32_has_31_convolutions_and_norms():
    model = timm.create_model("resnet32_cifar", num_classes=10, in_chans=3)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == 31


@pytest.mark.parametrize("name", OURS[:2])
@pytest.mark.parametrize(("in_chans", "size"), [(1, 8), (3, 9), (3, 32)])
def test_timm_contract(name, in_chans, size):
    model = timm.create_model(name, num_classes=7, in_chans=in_chans).eval()
    images = torch.randn(2, in_chans, size, size)
    features = model.forward_features(images)
    side = -(-size // 4)
    assert features.shape == (2, model.num_features, side, side)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert torch.equal(model.get_classifier()(pooled), model(images))
    assert model(images).shape == (2, 7)

    model.reset_classifier(3)
    assert model(images).shape == (2, model.num_classes) == (2, 3)
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    assert timm.create_model(name, num_classes=0)(torch.randn(2, 3, 8, 8)).shape == pooled.shape


def test_resnet_starts_he_normal_with_torch_biases():
    model = build_backbone("resnet32_cifar", 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            ratio = module.weight.std() / (2 / fan_in) ** 0.5
            assert abs(ratio - 1) < 4 / (2 * module.weight.numel()) ** 0.5
    assert 0 < model.fc.bias.abs().max() <= 1 / 8


def test_experts_start_he_normal():
    model = build_backbone("resnet32_cifar_experts", 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            ratio = module.weight.std() / (2 / module.weight[0].numel()) ** 0.5
            assert abs(ratio - 1) < 4 / (2 * module.weight.numel()) ** 0.5


@pytest.mark.parametrize("name", ["wrn_28_2", "wrn_28_8"])
def test_wide_resnet_starts_he_normal_by_fan_out(name):
    model = build_backbone(name, 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel()
            ratio = module.weight.std() / (2 / fan_out) ** 0.5
            assert abs(ratio - 1) < 4 / (2 * module.weight.numel()) ** 0.5
    assert not model.fc.bias.any()


def test_option_a_shortcut_keeps_every_second_pixel_between_zero_channels():
    block = build_backbone("resnet32_cifar", 10).layer2[0]
    x = torch.randn(2, 16, 5, 6)
    out = block.shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_wide_block_is_preactivation_with_a_shared_first_activation():
    block = build_backbone("wrn_28_2", 10, negative_slope=0.1).groups[0][0].eval()
    x = torch.randn(2, 16, 8, 8)
    active = F.leaky_relu(block.bn1(x), 0.1)
    inner = block.conv2(F.leaky_relu(block.bn2(block.conv1(active)), 0.1))
    torch.testing.assert_close(block(x), inner + block.projection(active))
    assert build_backbone("wrn_28_2", 10, bn_momentum=0.001).bn.momentum == 0.001


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", OURS[:2])
def test_bfloat16_channels_last_trains_and_agrees_with_float32(name, head):
    model = build_backbone(name, 5, head=head).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.forward_features(images)
        logits = model(images)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert features.dtype == torch.bfloat16
    logits.float().logsumexp(1).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(logits.float(), model(images), atol=0.25, rtol=0.05)


def test_cosine_head_gives_cosines_in_float32_under_autocast():
    head = NormedLinear(16, 4)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(4))
    features = torch.randn(9, 16)
    expected = F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(features), expected)
    with torch.no_grad():
        head.weight *= 3
    torch.testing.assert_close(head(5 * features), expected)


def test_cosine_head_directions_are_those_of_a_cube():
    """E[max |w|] / |w| of a uniform cube's directions, against a slow draw of the definition."""
    cube = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = (cube.abs().amax(1) / cube.norm(dim=1)).mean()
    weight = NormedLinear(3, 20_000).weight
    torch.testing.assert_close(weight.abs().amax(1).mean(), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_cosine_head_replaces_the_classifier_of_any_timm_model(name):
    size = {"img_size": 32, "patch_size": 16} if name.startswith("vit") else {}
    model = build_backbone(name, 6, head="cosine", **size).eval()
    assert isinstance(model.get_classifier(), NormedLinear)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 6)
    assert logits.abs().max() <= 1 + 1e-6


def test_unknown_backbone_names_the_nearest_and_not_all():
    with pytest.raises(UserError, match="resnet32_cifar") as caught:
        build_backbone("resnet32cifar", 10)
    assert len(str(caught.value)) < 250
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrn_28_2", {"pretrained": True}, "pretrained"),
        ("wrn_28_2", {"widen": 3}, "widen"),
        ("deit_tiny_distilled_patch16_224", {"head": "cosine"}, "head"),
    ],
)
def test_other_mistakes_say_what_to_change(name, options, message):
    with pytest.raises(UserError, match=message):
        build_backbone(name, 10, **options)

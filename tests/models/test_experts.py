import timm
import torch
from torch import nn
from torch.testing import assert_close

from ltbench.models import NormedLinear, build_backbone, penultimate


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def experts(**options):
    torch.manual_seed(0)
    return build_backbone("resnet32_cifar_experts", head="cosine", **options)


def test_parameter_counts_are_those_of_the_released_network():
    net = experts(num_classes=10)
    assert parameters(net) == 770_896
    assert parameters(net.stem) == 23_824
    for expert in net.experts:
        assert [parameters(stage) for stage in expert] == [50_592, 197_952]
    assert parameters(net.heads) == 3 * 48 * 10
    assert parameters(experts(num_classes=100)) == 783_856


def test_each_head_sees_its_own_expert_of_a_shared_stem():
    net, images = experts(num_classes=7, in_chans=1, experts=2).eval(), torch.randn(3, 1, 9, 9)
    with torch.no_grad():
        outputs = penultimate.outputs(net, images)
        features = penultimate.head_features(net, images)
        assert tuple(outputs) == ("", "expert1", "expert2")
        assert {f.shape for f in features.values()} == {(3, 48)}
        assert_close(net(images), (outputs["expert1"] + outputs["expert2"]) / 2)
        net.experts[1].apply(lambda m: isinstance(m, nn.Conv2d) and m.weight.zero_())
        after = penultimate.outputs(net, images)
    assert torch.equal(after["expert1"], outputs["expert1"])
    assert not torch.equal(after["expert2"], outputs["expert2"])


def test_every_declared_head_is_cosine_or_linear_as_asked():
    for head in ("cosine", "linear"):
        net = build_backbone("resnet32_cifar_experts", 7, head=head)
        kinds = {type(each) for each in penultimate.classifiers(net).values()}
        assert kinds == {NormedLinear if head == "cosine" else nn.Linear}
        assert not isinstance(net.forward(torch.randn(2, 3, 8, 8)), tuple)


def test_it_is_a_timm_name():
    net = timm.create_model("resnet32_cifar_experts", num_classes=5, in_chans=3)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 5)

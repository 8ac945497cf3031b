"""Distilled ViTs: sizes and start of the published student, both heads, and the look inside."""

import pytest
import timm
import torch
from torch import nn

from ltbench.models import build_backbone, penultimate
from ltbench.models.distilled_vit import attention_maps, block_tokens

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 3, "num_heads": 4}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def small():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = build_backbone("deit_tiny_distilled_patch4_32", 5, in_chans=1, **SMALL)
        # Away from the start, where all blocks are close to the identity.
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
        return net.eval(), torch.randn(6, 1, 8, 8)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("deit_base_distilled_patch16_224", 10, 85_815_572),
        ("deit_base_distilled_patch16_224", 100, 85_953_992),
        ("deit_base_distilled_patch16_224", 1000, 87_338_192),
        ("deit_base_distilled_patch16_224", 8142, 98_322_588),
        ("deit_tiny_distilled_patch16_224", 10, 5_528_660),
        ("deit_small_distilled_patch16_224", 10, 21_674_132),
    ],
)
def test_parameter_counts_are_the_papers(name, num_classes, expected):
    with torch.device("meta"):
        assert parameters(build_backbone(name, num_classes)) == expected


@pytest.mark.paper
def test_the_published_student():
    """Structure of arXiv 2404.02900's ViT-B/16: tokens, norms, drop-path and no-decay list."""
    with torch.device("meta"):
        net = build_backbone("deit_base_distilled_patch16_224", 10, drop_path_rate=0.1)
    assert net.pos_embed.shape == (1, 198, 768)
    assert (len(net.blocks), net.blocks[0].attn.num_heads) == (12, 12)
    assert {m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert {"pos_embed", "cls_token", "dist_token"} <= net.no_weight_decay()


def test_the_start_is_deits():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = build_backbone("deit_tiny_distilled_patch4_32", 10)
    for weight in (net.head.weight, net.head_dist.weight, net.pos_embed, net.dist_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert net.blocks[3].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.cls_token.std().item() == pytest.approx(1e-6, rel=0.3)
    assert not net.head_dist.bias.any()
    assert not torch.equal(net.head.weight, net.head_dist.weight)


def test_the_small_student_is_deit_tiny_on_8_x_8_patches():
    net = timm.create_model("deit_tiny_distilled_patch4_32", num_classes=10)
    assert net.pos_embed.shape == (1, 2 + 64, 192)
    same = build_backbone("deit_tiny_distilled_patch16_224", 10, img_size=32, patch_size=4)
    assert [p.shape for p in net.parameters()] == [p.shape for p in same.parameters()]
    net.load_state_dict(same.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), same.eval()(images))


def test_heads_read_their_own_tokens(small):
    net, images = small
    tokens = net.forward_features(images)
    heads = penultimate.outputs(net, images)
    assert list(heads) == ["", "cls", "dist"] == list(penultimate.head_names(net))
    _, cls, dist = heads.values()
    assert torch.equal(cls, tokens[:, 0] @ net.head.weight.T + net.head.bias)
    assert torch.equal(dist, tokens[:, 1] @ net.head_dist.weight.T + net.head_dist.bias)
    torch.testing.assert_close(net(images), (cls + dist) / 2)
    net.train().set_distilled_training(True)
    torch.testing.assert_close(net(images), (cls, dist))


def test_block_tokens_are_those_after_each_block(small):
    net, images = small
    x = net._pos_embed(net.patch_embed(images))
    found, normed = block_tokens(net, images), block_tokens(net, images, norm=True)
    assert found.shape == (3, 6, 2, 32)
    assert not found.requires_grad
    for block, tokens, after_norm in zip(net.blocks, found, normed, strict=True):
        x = block(x)
        torch.testing.assert_close(tokens, x[:, :2])
        torch.testing.assert_close(after_norm, net.norm(x)[:, :2])
    torch.testing.assert_close(normed[-1], net.forward_features(images)[:, :2])


def test_attention_maps_are_the_softmax_of_queries_and_keys(small):
    net, images = small
    maps = attention_maps(net, images)
    x = net._pos_embed(net.patch_embed(images))
    assert len(maps) == 3
    for block, found in zip(net.blocks, maps, strict=True):
        queries, keys = (
            part.unflatten(2, (4, 8)).transpose(1, 2)
            for part in block.attn.qkv(block.norm1(x)).split(32, dim=2)[:2]
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / 8**0.5
        torch.testing.assert_close(found, scores.softmax(-1))
        torch.testing.assert_close(found.sum(-1), torch.ones(6, 4, 18))
        x = block(x)


def test_looking_changes_nothing(small):
    net, images = small
    before = net(images)
    fused = [block.attn.fused_attn for block in net.blocks]
    attention_maps(net, images)
    with pytest.raises(AssertionError):
        attention_maps(net, torch.randn(1, 1, 9, 9))
    assert [block.attn.fused_attn for block in net.blocks] == fused
    assert not any(block.attn.attn_drop._forward_hooks for block in net.blocks)
    assert torch.equal(net(images), before)

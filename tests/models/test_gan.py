import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.models.gan import RESGAN, Architecture, build_gan


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def build(num_classes=7, in_chans=3, **options):
    torch.manual_seed(0)
    return build_gan(Architecture(**{"width": 4, "latent": 16} | options), num_classes, in_chans)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("family", "size", "generator", "discriminator"),
    [
        ("sndcgan", 32, 3_812_355, 2_928_193),
        ("snresgan", 32, 4_276_739, 1_053_825),
        ("snresgan", 64, 12_220_675, 19_542_721),
        ("snresgan_inplace", 64, 12_220_675, 19_542_721),
    ],
)
def test_sizes_of_the_published_networks(family, size, generator, discriminator):
    with torch.device("meta"):
        networks = build_gan(Architecture(family, size), 10)
    assert [parameters(network) for network in networks] == [generator, discriminator]


@pytest.mark.parametrize("conditioning", ["none", "acgan", "projection"])
@pytest.mark.parametrize(
    ("family", "size"),
    [("sndcgan", 8), ("sndcgan", 32), *(("snresgan", size) for size in RESGAN)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_and_ranges(family, size, conditioning, batch):
    generator, discriminator = build(
        family=family, image_size=size, conditioning=conditioning, in_chans=1
    )
    labels = torch.arange(batch)
    images = generator(torch.randn(batch, 16), labels)
    assert images.shape == (batch, 1, size, size)
    assert images.abs().max() <= 1
    scores, classes = discriminator(images, labels)
    assert scores.shape == (batch,)
    assert (classes is not None) == (conditioning == "acgan")
    if classes is not None:
        assert classes.shape == (batch, 7)


@pytest.mark.parametrize("family", ["sndcgan", "snresgan"])
def test_labels_matter_to_the_conditional_networks_alone(family):
    latents, images = torch.randn(2, 16), torch.randn(2, 3, 32, 32)
    one, other = torch.tensor([0, 0]), torch.tensor([1, 1])
    for conditioning in ("none", "acgan", "projection"):
        generator, discriminator = build(family=family, conditioning=conditioning)
        generator.eval(), discriminator.eval()
        same = torch.equal(generator(latents, one), generator(latents, other))
        assert same == (conditioning == "none")
        same = torch.equal(discriminator(images, one)[0], discriminator(images, other)[0])
        assert same == (conditioning != "projection")


@pytest.mark.parametrize("family", ["sndcgan", "snresgan"])
def test_every_weight_of_the_discriminator_has_norm_one(family):
    _, discriminator = build(family=family, conditioning="projection")
    for _ in range(30):  # power iterations
        discriminator(torch.randn(1, 3, 32, 32), torch.tensor([0]))
    discriminator.eval()
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    weighted = [m for m in discriminator.modules() if isinstance(m, kinds)]
    assert len(weighted) == {"sndcgan": 9, "snresgan": 12}[family]
    for module in weighted:
        with torch.no_grad():
            norm = torch.linalg.matrix_norm(module.weight.flatten(1), 2)
        assert_close(norm, torch.tensor(1.0), atol=0.02, rtol=0)


@pytest.mark.paper
@pytest.mark.parametrize("family", ["snresgan", "snresgan_inplace"])
@pytest.mark.parametrize("size", [32, 64])
def test_the_shortcut_sees_what_an_activation_in_place_leaves(family, size):
    """An oracle that overwrites, on the same weights; at 32 px, some shortcuts are the identity."""
    _, discriminator = build(family=family, image_size=size)
    discriminator.eval()
    images = torch.randn(3, 3, size, size)

    def block(x, layer, first):
        overwritten = x if family == "snresgan_inplace" else x.clone()
        before = x if first else F.leaky_relu_(overwritten, 0.1)
        out = layer.conv2(F.leaky_relu_(layer.conv1(before), 0.1))
        x = x if layer.skip is None else layer.skip(x)
        return F.avg_pool2d(out, 2) + F.avg_pool2d(x, 2) if layer.halve else out + x

    with torch.no_grad():
        x = images
        for place, layer in enumerate(list(discriminator.body)[:-1]):
            x = block(x, layer, place == 0)
        expected = discriminator.linear(F.leaky_relu(x, 0.1).sum((2, 3))).squeeze(1)
        assert_close(discriminator(images)[0], expected)

    _, other = build(
        family={"snresgan": "snresgan_inplace"}.get(family, "snresgan"), image_size=size
    )
    other.load_state_dict(discriminator.state_dict())
    other.eval()
    assert (other(images)[0] - expected).abs().min() > 1e-3


def test_both_players_start_orthogonal():
    generator, discriminator = build(conditioning="acgan")
    assert_close(generator.linear.weight.T @ generator.linear.weight, torch.eye(16))
    weight = discriminator.classifier.parametrizations.weight.original.detach()
    assert_close(weight @ weight.T, torch.eye(7))
    assert not generator.conv.bias.any()


def test_one_image_scores_as_it_does_in_a_batch():
    _, discriminator = build(family="snresgan")
    discriminator.eval()
    images = torch.randn(3, 3, 32, 32)
    scores = discriminator(images)[0]
    assert_close(torch.cat([discriminator(image[None])[0] for image in images]), scores)


def test_under_autocast_scores_stay_float32():
    generator, discriminator = build(conditioning="projection")
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(2, 16), torch.tensor([0, 1]))
        scores, _ = discriminator(images, torch.tensor([0, 1]))
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("size", [0, 4, 12, 31, 48])
def test_a_size_that_no_doubling_reaches_is_refused(size):
    with pytest.raises(UserError, match=f"image_size {size}"):
        build(image_size=size)


def test_snresgan_has_its_sizes():
    with pytest.raises(UserError, match="image_size 16"):
        build(family="snresgan", image_size=16)

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.testing import assert_close

from ltbench.errors import UserError
from ltbench.models import build_backbone, penultimate

# An attention net with one head, two, and convolutional nets from timm and from here.
NETS = {
    "resnet32_cifar": {},
    "wrn_28_2": {},
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 1},
    "deit_tiny_distilled_patch4_32": {"depth": 1, "patch_size": 8},
}


def net_named(name):
    torch.manual_seed(0)
    return build_backbone(name, 7, **NETS[name]).eval()


@pytest.mark.parametrize("name", NETS)
def test_features_and_classifier_are_the_network(name):
    net, images = net_named(name), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = penultimate.features(net, images)
        logits = net(images)
        weight, bias = penultimate.linear_map(net)
        assert_close(penultimate.classify(net, found), logits)
        assert_close(found @ weight.T + bias, logits, atol=1e-5, rtol=1e-4)
    assert weight.shape == (7, found.shape[1])


def test_images_are_brought_to_the_size_of_a_transformer():
    net = net_named("deit_tiny_distilled_patch4_32")
    assert penultimate.features(net, torch.randn(2, 3, 16, 16)).shape == (2, 2 * 192)


def test_a_classifier_without_bias_has_a_bias_of_zero():
    net = net_named("resnet32_cifar")
    net.fc = torch.nn.Linear(64, 7, bias=False)
    assert_close(penultimate.linear_map(net)[1], torch.zeros(7))


def test_a_cosine_classifier_is_refused():
    with pytest.raises(UserError, match="cosine"):
        penultimate.linear_heads(build_backbone("resnet32_cifar", 7, head="cosine"))


def test_statistics_are_exact_for_any_batches():
    net = net_named("resnet32_cifar")
    images, labels = torch.randn(11, 3, 32, 32), torch.arange(11) % 4
    with torch.no_grad():
        found = penultimate.features(net, images)
    predictions = penultimate.classify(net, found).argmax(1)
    for sizes in ([11], [4, 4, 3], []):
        parts = zip(images.split(sizes), labels.split(sizes), strict=True) if sizes else ()
        batches = [{"image": image, "label": label} for image, label in parts]
        counts, sums = penultimate.class_statistics(net, batches, 7, torch.device("cpu"))
        if not sizes:  # a rank without images
            assert counts.sum() == sums.abs().sum() == 0
            continue
        expected = confusion_matrix(labels, predictions, labels=range(7))
        assert torch.equal(counts, torch.from_numpy(expected))
        for c in range(7):
            assert_close(sums[c], found[labels == c].double().sum(0), atol=1e-5, rtol=1e-5)

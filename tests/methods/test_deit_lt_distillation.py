"""The distillation losses by hand, the paper's numbers, and what the teacher sees."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import log_softmax
from torch import nn

from ltbench.data.profiles import class_counts
from ltbench.data.sources.base import CIFAR_MEAN, CIFAR_STD
from ltbench.methods.deit_lt.distillation import (
    Teacher,
    drw_weights,
    hard_distillation_loss,
    resize,
    soft_distillation_loss,
    weighted_mean,
)
from ltbench.models import InputStatistics

IMAGENET = InputStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = InputStatistics(CIFAR_MEAN, CIFAR_STD)

# Rangwani et al., arXiv 2404.02900: logits of three samples and the teacher's labels.
LOGITS = torch.tensor([[2.0, 1, 0], [0, 1, 2], [1, 0, 3]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])
WEIGHT = torch.tensor([0.5, 1.0, 1.5])


@pytest.mark.paper
def test_hard_distillation_and_its_two_weighted_means():
    losses = hard_distillation_loss(LOGITS, LABELS)
    assert losses.tolist() == pytest.approx([0.407606, 1.407606, 3.169846], abs=1e-6)
    assert weighted_mean(losses, LABELS).item() == pytest.approx(1.661686, abs=1e-6)
    for scale in (1, 10):
        found = weighted_mean(losses, LABELS, scale * WEIGHT)
        assert found.item() == pytest.approx(1.912502, abs=1e-6)
    paper = weighted_mean(losses, LABELS, WEIGHT, form="paper")
    assert paper.item() == pytest.approx(1.593752, abs=1e-6)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("largest", "classes", "factor", "at", "weights", "total"),
    [
        (
            *(5000, 10, 100, range(10)),
            "0.050611 0.076900 0.121134 0.195037 0.318805 "
            "0.524590 0.868349 1.442627 2.409223 3.992724",
            2121.366003,
        ),
        (
            *(5000, 10, 50, range(10)),
            "0.089030 0.126678 0.185257 0.276057 0.416751 "
            "0.634413 0.969534 1.489447 2.292256 3.520576",
            3760.711879,
        ),
        (
            *(500, 100, 100, [0, 1, 25, 35, 36, 50, 70, 71, 75, 90, 99]),
            "0.044876 0.046986 0.141393 0.224424 0.236430 "
            "0.457055 1.152994 1.216989 1.460167 3.127679 4.378313",
            2200.530715,
        ),
        (
            *(500, 100, 50, [0, 1, 25, 35, 36, 50, 70, 71, 75, 90, 99]),
            "0.078889 0.082095 0.208783 0.309725 0.322550 "
            "0.559530 1.243042 1.284413 1.540910 2.750113 3.849388",
            3871.824924,
        ),
    ],
    ids=["cifar10-100", "cifar10-50", "cifar100-100", "cifar100-50"],
)
def test_drw_weights_of_the_paper(largest, classes, factor, at, weights, total):
    counts = torch.tensor(class_counts(largest, classes, factor))
    found = drw_weights(counts)
    assert found[list(at)].tolist() == pytest.approx([float(w) for w in weights.split()], abs=2e-6)
    assert found.sum().item() == pytest.approx(classes, rel=1e-6)
    assert (counts * found.double()).sum().item() == pytest.approx(total, rel=1e-6)


@pytest.mark.paper
def test_weights_of_the_papers_form_are_one_over_the_effective_number():
    counts = torch.tensor([1, 5, 50, 100, 500, 5000])
    effective = 1 / drw_weights(counts, form="paper").double()
    expected = [1.0000, 4.9990, 49.8777, 99.5066, 487.7295, 3934.8450]
    assert effective.tolist() == pytest.approx(expected, abs=1e-3)
    ratio = drw_weights(counts) / drw_weights(counts, form="paper")
    assert torch.allclose(ratio, ratio[:1])  # the two differ in scale alone


@given(st.integers(1, 6), st.integers(2, 5), st.floats(0.2, 5), st.integers(0, 99))
def test_soft_distillation_is_the_divergence_of_deits_code(batch, classes, temperature, seed):
    draw = np.random.default_rng(seed)
    student, teacher = 3 * draw.normal(size=(2, batch, classes))
    p, q = (log_softmax(z / temperature, axis=1) for z in (teacher, student))
    expected = (np.exp(p) * (p - q)).sum(1) * temperature**2 / classes
    found = soft_distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    assert (found > -1e-6).all()


def test_soft_distillation_is_zero_for_the_teachers_own_logits():
    assert soft_distillation_loss(LOGITS, LOGITS + 7, 2.0).tolist() == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("form", ["normalised", "paper"])
def test_shares_of_one_class_weigh_like_its_label(form):
    losses = hard_distillation_loss(LOGITS, LABELS)
    shares = nn.functional.one_hot(LABELS, 3).double()
    assert torch.equal(hard_distillation_loss(LOGITS.float(), shares.float()), losses)
    by_label, by_share = (weighted_mean(losses, t, WEIGHT, form) for t in (LABELS, shares))
    assert by_label.item() == pytest.approx(by_share.item())


def test_losses_of_half_precision_are_computed_in_single():
    logits = 30 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    half = logits.bfloat16()
    labels = torch.arange(8) % 5
    assert hard_distillation_loss(half, labels).dtype == torch.float32
    for found, exact in (
        (hard_distillation_loss(half, labels), hard_distillation_loss(half.float(), labels)),
        (soft_distillation_loss(half, -half), soft_distillation_loss(half.float(), -half.float())),
    ):
        assert torch.equal(found, exact)


# --- what the teacher sees ---


@pytest.fixture
def enlarged():
    """Four images of noise, and the same enlarged from 32 to 224 pixels as Pillow does."""
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    large = [Image.fromarray(i).resize((224, 224), Image.Resampling.BICUBIC) for i in images]
    return (
        torch.from_numpy(array.astype(np.float32)).permute(0, 3, 1, 2)
        for array in (images, np.stack([np.asarray(image) for image in large]))
    )


@pytest.mark.paper
def test_without_antialiasing_an_enlarged_image_comes_back_exactly(enlarged):
    images, large = enlarged
    assert torch.equal(resize(large, 32, antialias=False).round(), images)
    blurred = resize(large, 32, antialias=True)
    assert ((blurred - images).square().mean().sqrt() / images.std()).item() > 0.1


def test_nothing_is_resampled_at_the_same_size():
    images = torch.randn(2, 3, 8, 8)
    assert resize(images, 8, antialias=True) is images


@pytest.mark.paper
def test_a_cifar_teacher_sees_imagenet_statistics_as_scale_and_shift():
    """What the published code feeds unchanged is scale z + shift of what the teacher knows."""
    teacher = Teacher(nn.Identity(), 4, seen=CIFAR, known=IMAGENET)
    assert teacher.scale.flatten().tolist() == pytest.approx([0.883, 0.890, 0.893], abs=5e-4)
    assert teacher.shift.flatten().tolist() == pytest.approx([0.028, 0.117, 0.180], abs=5e-4)
    pixels = torch.rand(2, 3, 4, 4)

    def normalised(by):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (by.mean, by.std))
        return (pixels - mean) / std

    back = Teacher(nn.Identity(), 4, seen=IMAGENET, known=CIFAR)
    torch.testing.assert_close(back.view(normalised(IMAGENET)), normalised(CIFAR))
    same = Teacher(nn.Identity(), 4, seen=IMAGENET)
    assert torch.equal(same.view(pixels), pixels)


def test_the_teacher_is_frozen_and_no_module():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5)).train()

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = Teacher(network, 4)

    holder = Holder().train()
    assert not list(holder.parameters())
    assert not holder.state_dict()
    before = network[0].running_mean.clone()
    logits = holder.teacher(5 + torch.randn(6, 3, 8, 8, requires_grad=True))
    assert logits.shape == (6, 5)
    assert not logits.requires_grad
    assert not network.training
    assert torch.equal(network[0].running_mean, before)

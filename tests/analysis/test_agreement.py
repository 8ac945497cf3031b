import numpy as np
import pytest
import torch
from digit_runs import analyze, deit_run
from scipy.stats import entropy as entropy_of

from ltbench.analysis.agreement import entropy, partners
from ltbench.data.datamodule import LongTailDataModule
from ltbench.methods.deit_lt.distillation import resize
from ltbench.methods.deit_lt.mixing import PairMixing
from ltbench.models import build_backbone


def test_entropies_are_scipys():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert entropy(logits).numpy() == pytest.approx(entropy_of(logits.softmax(1).numpy(), axis=1))


@pytest.mark.parametrize("size", [6, 7])
def test_partners_are_the_images_that_mixing_brings_in(size):
    labels = torch.arange(size)
    targets = PairMixing(size, mixup=1.0, cutmix=0, smoothing=0)(
        torch.rand(size, 1, 4, 4), labels, 3
    )
    for label, partner, target in zip(labels, partners(labels), targets, strict=True):
        assert set(target.nonzero().flatten().tolist()) <= {int(label), int(partner)}
        if label != partner:
            assert target[partner] > 0


def recomputed(run, folder):
    """Predictions of teacher and student on all training images, one after the other."""

    def network(path, *args, **sizes):
        net = build_backbone(*args, **sizes).eval()
        state = torch.load(path, weights_only=True)["state_dict"]
        net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
        return net

    teacher = network(run.last, "tiny_net", 10, 1)
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16}
    student = network(
        folder / "checkpoints/last.ckpt", "deit_tiny_distilled_patch4_32", 10, 1, **sizes
    )
    data = LongTailDataModule("digits", imbalance_factor=10, largest=60, val_fraction=0.2)
    data.setup()
    images = resize(data.normalise(data.dataset("train").images), 16, antialias=True)
    with torch.inference_mode():
        tokens = student.forward_features(images)
        return (
            teacher(resize(images, 8, antialias=False)),
            student.head(tokens[:, 0]),
            student.head_dist(tokens[:, 1]),
            tokens,
            data.dataset("train").labels,
        )


def test_what_is_said_of_clean_images_is_what_one_pass_over_them_says(
    ltbench, digits_run, tmp_path
):
    folder = deit_run(digits_run)
    result = analyze(ltbench, "agreement", folder, tmp_path, "--batch_size", "32")
    teacher, cls, dist, tokens, labels = recomputed(digits_run, folder)
    said = teacher.argmax(1)
    clean = result["clean"]
    heads = {"cls": cls, "dist": dist, "average": (cls + dist) / 2}
    for head, logits in heads.items():
        same = (logits.argmax(1) == said).double()
        assert clean["agreement"][head]["all"] == pytest.approx(float(same.mean()))
        for group, members in {"head": (0, 3), "mid": (3, 7), "tail": (7, 10)}.items():
            chosen = (labels >= members[0]) & (labels < members[1])
            assert clean["agreement"][head][group] == pytest.approx(float(same[chosen].mean()))
    assert clean["teacher_error"] == pytest.approx(float((said != labels).double().mean()))
    assert clean["entropy"]["teacher"] == pytest.approx(float(entropy(teacher).mean()), rel=1e-4)
    assert clean["entropy"]["dist"] == pytest.approx(float(entropy(dist).mean()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(tokens[:, 0], tokens[:, 1]).mean()
    assert clean["diversity"] == pytest.approx(1 - float(cosine), rel=1e-3, abs=1e-5)
    prior = np.bincount(labels, minlength=10) / len(labels)
    assert clean["label_prior"] == pytest.approx(prior)
    assert clean["teacher_labels"] == pytest.approx(np.bincount(said, minlength=10) / len(labels))


def test_mixed_images_have_two_right_answers_and_the_run_has_its_curve(
    ltbench, digits_run, tmp_path
):
    result = analyze(ltbench, "agreement", deit_run(digits_run), tmp_path, "--images", "60")
    again = analyze(ltbench, "agreement", deit_run(digits_run), tmp_path, "--images", "60")
    assert result["mixed"] == again["mixed"]
    assert result["images"] == 60
    assert 0 <= result["mixed"]["teacher_error"] <= 1
    assert result["mixed"]["label_prior"] == result["clean"]["label_prior"]
    assert result["diversity_by_epoch"]["epoch"] == [0, 1]
    assert "agreement-diversity.png" in result["figures"]


def test_a_method_without_a_teacher_is_refused(refused, digits_run, tmp_path):
    command = ("analyze", "agreement", "--run", digits_run.folder, "--output", tmp_path)
    assert "DeiT-LT" in refused(*command, "--device", "cpu")

import math
import os
import shutil

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from sklearn.neighbors import NearestCentroid
from support import TINY, fit
from torch.testing import assert_close

from ltbench import shipped
from ltbench.corrections import tau_normalised
from ltbench.data import LongTailDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.errors import UserError
from ltbench.methods import ERM, LWS, ClassMeans, LogitAdjustment, MiSLAS, TauNormalisation
from ltbench.methods.decoupled import scaled_logits
from ltbench.methods.parts.features import FrozenFeatures
from ltbench.methods.parts.stages import Trained
from ltbench.models import penultimate
from ltbench.models.weights import read
from ltbench.optim.sam import SAM
from ltbench.records import read_record
from ltbench.runs.experiment import build
from ltbench.runs.finished import open_run


def state_of(folder):
    state = read(folder / "checkpoints/last.ckpt")["state_dict"]
    return {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}


def config_of(folder, method, start, data=None, **arguments):
    config = yaml.safe_load(TINY)
    config["trainer"]["max_epochs"] = 2
    config["model"]["class_path"] = method
    config["model"]["init_args"].pop("backbone")
    if method in ("TauNormalisation", "LogitAdjustment", "ClassMeans"):  # which learn nothing
        for name in ("optimizer", "lr_schedule"):
            config["model"]["init_args"].pop(name, None)
    config["model"]["init_args"] |= {"init_from": {"path": str(start)}, **arguments}
    config["data"]["init_args"] |= data or {}
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def run_of(ltbench, digits_run, tmp_path):
    """A finished run of a method on the head of the tiny one: its folder."""

    def run(method, start=digits_run.folder, **arguments):
        done = ltbench("fit", "--config", config_of(tmp_path, method, start, **arguments))
        assert done.code == 0, done.err
        (folder,) = (tmp_path / "runs").glob(f"{method}-*")
        return folder

    return run


@pytest.mark.paper
@pytest.mark.parametrize(("tau", "norm"), [(0, 5), (0.5, math.sqrt(5)), (1, 1)])
def test_tau_takes_a_norm_to_the_power_of_the_rest(tau, norm):
    weight = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    found = tau_normalised(weight, weight.norm(dim=1, keepdim=True), tau)
    assert_close(found.norm(dim=1), torch.tensor([norm, 50 ** (1 - tau)]).float())
    assert_close(torch.nn.functional.normalize(found), torch.nn.functional.normalize(weight))


@pytest.mark.paper
def test_scales_are_of_the_logits_of_classes():
    features, weight, scales = torch.randn(5, 4), torch.randn(3, 4), torch.tensor([1.0, 2.0, 0.5])
    assert_close(scaled_logits(features, weight, scales), features @ (scales[:, None] * weight).T)


def test_scales_alone_are_learned_and_the_run_has_an_ordinary_head(run_of, digits_run):
    folder = run_of("LWS", data={"sampler": "class_balanced"}, ema_decay=0.5)
    before, after = state_of(digits_run.folder), state_of(folder)
    assert {k for k in after if not torch.equal(before[k], after[k])} == {"fc.weight", "fc.bias"}
    assert not after["fc.bias"].any()
    ratios = after["fc.weight"] / before["fc.weight"]
    assert_close(ratios, ratios[:, :1].expand_as(ratios), atol=1e-4, rtol=1e-4)
    assert (ratios[:, 0] - 1).abs().max() > 0.01
    model = open_run(folder, device="cpu").model
    assert isinstance(model, LWS)
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        features = penultimate.features(model.net, images)
        logits = scaled_logits(features, model.class_vectors[0], model.scales[0])
    assert_close(model(images), logits)


def test_tau_is_chosen_by_mean_recall_on_validation_images(run_of, digits_run):
    folder = run_of("TauNormalisation")
    record = read_record(folder / "record.json")
    assert (record["steps"], record["method"]) == (0, "decoupled")
    lines = (folder / "metrics.csv").read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    tau = round(float(row["train/tau"]), 3)
    assert f"{10 * tau:.3f}".endswith(".000")
    before, after = state_of(digits_run.folder), state_of(folder)
    norms = before["fc.weight"].norm(dim=1, keepdim=True)
    assert_close(after["fc.weight"], tau_normalised(before["fc.weight"], norms, tau))
    assert not after["fc.bias"].any()
    run = open_run(folder, device="cpu")
    images, labels = run.data.dataset("val").images, run.data.dataset("val").labels
    recalls = {}
    with torch.no_grad():
        features = penultimate.features(run.model.net, run.data.normalise(images))
    for step in range(21):
        vectors = tau_normalised(before["fc.weight"], norms, step / 10)
        hits = (features @ vectors.T).argmax(1) == labels
        recalls[step / 10] = sum(hits[labels == c].float().mean() for c in range(10)) / 10
    assert tau == max(recalls, key=recalls.get)
    assert record["metrics"]["last"]["val"]["mean_recall"] == pytest.approx(float(recalls[tau]))
    assert any("tau is the smallest" in text for text in record["deviations"])


def test_a_given_tau_needs_no_validation_images(ltbench, refused, digits_run, tmp_path):
    config = config_of(tmp_path, "ERM", digits_run.folder, {"val_fraction": 0.0})
    plain = yaml.safe_load(config.read_text())
    plain["model"]["init_args"] = {"backbone": "tiny_net"}
    config.write_text(yaml.safe_dump(plain))
    assert ltbench("fit", "--config", config).code == 0
    (start,) = (tmp_path / "runs").glob("ERM-*")
    config = config_of(tmp_path, "TauNormalisation", start, {"val_fraction": 0.0})
    assert "model.tau" in refused("fit", "--config", config)
    done = ltbench("fit", "--config", config, "--model.tau", "1.0")
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").glob("Tau*")
    norms = state_of(folder)["fc.weight"].norm(dim=1)
    assert_close(norms, torch.ones(10))


@pytest.mark.parametrize("method", ["LWS", "MiSLAS", "TauNormalisation", "LogitAdjustment"])
def test_each_of_several_heads_is_changed(method, ltbench, run_of, tmp_path):
    config = yaml.safe_load(TINY)
    config["model"]["init_args"]["backbone"] = "three_experts"
    path = tmp_path / "experts.yaml"
    path.write_text(yaml.safe_dump(config))
    assert ltbench("fit", "--config", path, "--trainer.max_epochs", "1").code == 0
    (start,) = (tmp_path / "runs").glob("experts-*")
    folder = run_of(method, start)
    before, after = state_of(start), state_of(folder)
    changed = {k for k in after if not torch.equal(before[k], after[k])}
    assert {k for k in changed if k.endswith("bias")} == {f"heads.{k}.bias" for k in range(3)}
    metrics = read_record(folder / "record.json")["metrics"]["last"]["test"]
    assert {f"expert{k}/mean_recall" for k in range(3)} <= metrics.keys()


@pytest.mark.parametrize("class_", [LWS, MiSLAS, TauNormalisation, LogitAdjustment])
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"init_from": None}, "init_from"),
        ({"backbone": "tiny_net", "head": "cosine"}, "cosine"),
        ({"tau": -1.0}, "tau"),
    ],
)
def test_what_cannot_be_decoupled_is_refused(
    refused, digits_run, tmp_path, class_, arguments, word
):
    config = config_of(tmp_path, class_.__name__, digits_run.folder, **arguments)
    assert word in refused("fit", "--config", config)


@pytest.mark.paper
def test_configs_have_the_published_constants():
    def options(name):
        config = yaml.safe_load((shipped.folder("configs") / f"{name}.yaml").read_text())
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        schedule = model["lr_schedule"]
        rates = schedule if isinstance(schedule, str) else schedule["init_args"]
        sgd = model["optimizer"]["init_args"]
        how = config["trainer"]["max_epochs"], data["batch_size"], sgd["lr"], sgd["weight_decay"]
        return how, rates, model, data

    thirds = {"warmup": 0, "milestones": [[0.3333, 0.1], [0.6667, 0.01]]}
    for name, *expected in (  # cRT: Kang et al. on large sets, the bag of tricks on CIFAR
        ("crt_cifar10", (30, 128, 0.1, 5e-4), thirds, "class_balanced"),
        ("crt_cifar100", (30, 128, 0.1, 5e-4), thirds, "class_balanced"),
        ("crt_imagenetlt", (10, 512, 0.2, 5e-4), "Cosine", "class_aware"),
        ("crt_inat", (30, 512, 0.2, 1e-4), "Cosine", "class_aware"),
    ):
        how, rates, model, data = options(name)
        assert [how, rates, data["sampler"]] == expected
        assert (model["head_init"], model["trainable"]) == ("random", "head")
    late = {"warmup": 0.025, "milestones": [[0.8, 0.1], [0.9, 0.01]]}
    for name, *expected in (  # MiSLAS, stage one
        ("cemixup_cifar10", (200, 128, 0.1, 2e-4), late, 1.0),
        ("cemixup_cifar100", (200, 128, 0.1, 2e-4), late, 1.0),
        ("cemixup_imagenetlt", (180, 256, 0.1, 5e-4), "Cosine", 0.2),
        ("cemixup_inat", (200, 256, 0.1, 1e-4), "Cosine", 0.2),
    ):
        how, rates, model, _ = options(name)
        assert [how, rates, model["mixup"]] == expected
    for name, weight_decay, *expected in (  # stage two
        ("mislas_cifar10", 2e-4, 0.3, 0.0, 0.5, False),
        ("mislas_cifar100", 2e-4, 0.4, 0.1, 0.2, True),
        ("mislas_imagenetlt", 5e-4, 0.3, 0.0, 0.05, True),
        ("mislas_inat", 1e-4, 0.3, 0.0, 0.05, True),
    ):
        (epochs, _, *rest), rates, model, data = options(name)
        assert (epochs, *rest, rates) == (10, 0.1, weight_decay, "Cosine")
        assert data["sampler"] == "class_balanced"
        smoothing = [model[key] for key in ("head_smoothing", "tail_smoothing")]
        assert [*smoothing, model["lr_factor"], model["shift_bn"]] == expected


def test_rates_of_class_retraining_fall_at_a_third_and_two_thirds():
    for name, epochs in (("crt_cifar10", 30), ("lws_cifar10", 5)):
        experiment = build(name, {"data.source": "digits", "data.imbalance_factor": 10})
        assert experiment.config["trainer"]["max_epochs"] == epochs
        sgd = experiment.config["model"]["init_args"]["optimizer"]["init_args"]
        assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.1, 0.9, 5e-4)
        assert experiment.config["data"]["init_args"]["sampler"] == "class_balanced"
        if name == "crt_cifar10":
            schedule = experiment.model.lr_schedule
            factors = [schedule.factor(epoch, 30) for epoch in (0, 9, 10, 19, 20, 29)]
            assert factors == [1, 1, 0.1, 0.1, 0.01, 0.01]


# --- features once, heads on them ---

DATA = {"imbalance_factor": 10, "largest": 60, "val_fraction": 0.2, "batch_size": 32}
CRT = {"trainable": "head", "head_init": "random"}


def train(method, run, epochs=2, data=None, images=False, **options):
    """A method trained on a run in this process; ``images``: without features."""
    L.seed_everything(0, verbose=False)
    module = LongTailDataModule("digits", **DATA | (data or {}))
    model = method(10, 1, **{"init_from": Trained(str(run)), "backbone": "tiny_net"} | options)
    if images:
        model.reads_features = False
    return model, fit(model, module, epochs)


def features_of(model, trainer, split):
    """Features (n, d), labels (n,), computed here."""
    data = trainer.datamodule
    images = data.dataset(split)
    with torch.no_grad():
        return penultimate.features(model.net.eval(), data.normalise(images.images)), images.labels


HEADS = [(ERM, CRT), (LWS, {}), (MiSLAS, {}), (ClassMeans, {}), (LogitAdjustment, {})]


@pytest.mark.parametrize(("method", "options"), HEADS)
def test_a_head_on_features_is_the_head_on_images(digits_run, method, options):
    found = {}
    for images in (True, False):
        data = {"sampler": "class_balanced"}
        model, trainer = train(method, digits_run.folder, data=data, images=images, **options)
        found[images] = model.state_dict(), trainer.callback_metrics
    (state, metrics), (other, same) = found.values()
    assert_close(state, other, atol=1e-5, rtol=1e-5)
    assert_close(metrics, same, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.fixture
def own_run(digits_run, tmp_path):
    """A copy of the run, without features."""
    folder = shutil.copytree(digits_run.folder, tmp_path / "own")
    shutil.rmtree(folder / "features", ignore_errors=True)
    return folder


def test_features_are_computed_once_and_again_where_they_are_not_what_is_needed(
    own_run, monkeypatch
):
    computed = []
    compute = FrozenFeatures._computed
    monkeypatch.setattr(
        FrozenFeatures,
        "_computed",
        lambda self, split, rows: computed.append(split) or compute(self, split, rows),
    )

    def computes(method=ERM, **options):
        computed.clear()
        model, _ = train(method, own_run, 1, **(CRT if method is ERM else {}) | options)
        return model, sorted(computed)

    _, first = computes()
    assert first == ["train", "val"]
    assert computes(gradient_rule=SAM(0.05), ema_decay=0.5)[1] == []
    assert computes(LogitAdjustment)[1] == computes(ClassMeans)[1] == []
    crop = {"augment": [RandomCrop(1)], "val_fraction": 0.2}
    assert computes(data=crop)[1] == []
    assert computes(data={"image_size": 6})[1] == ["train", "val"]  # others for the network
    assert len([*(own_run / "features").iterdir()]) == 4
    for file in (own_run / "features").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    assert computes()[1] == ["train", "val"]
    shutil.rmtree(own_run / "features")
    assert computes()[1] == ["train", "val"]
    for file in (own_run / "features").iterdir():
        np.save(file, np.full_like(np.load(file), np.nan))
    assert computes()[1] == ["train", "val"]
    for file in (own_run / "features").iterdir():
        file.unlink()
        os.mkfifo(file)
    assert computes()[1] == ["train", "val"]
    checkpoint = own_run / "checkpoints/last.ckpt"
    content = read(checkpoint)
    content["state_dict"]["net.conv.weight"] += 1
    torch.save(content, checkpoint)
    model, of_others = computes()
    assert of_others == ["train", "val"]
    assert torch.equal(model.net.conv.weight, content["state_dict"]["net.conv.weight"])
    shutil.rmtree(own_run / "features")
    (own_run / "features").write_text("nothing can be kept here")
    assert [computes()[1] for _ in range(2)] == [["train", "val"]] * 2


@pytest.mark.filterwarnings(  # of features that are always 0
    "ignore:self.within_class_std_dev_", "ignore:invalid value encountered in divide"
)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_class_means_classify_as_scikit_learn(digits_run, metric):
    model, trainer = train(ClassMeans, digits_run.folder, 1, metric=metric)
    features, labels = features_of(model, trainer, "train")
    others, _ = features_of(model, trainer, "val")
    means = torch.stack([features[labels == c].mean(0) for c in range(10)])
    reference = NearestCentroid().fit(features.numpy(), labels.numpy())
    if metric == "cosine":  # of vectors of length 1, the nearest has the largest cosine
        others = torch.nn.functional.normalize(others)
        means = torch.nn.functional.normalize(means)
        reference = NearestCentroid().fit(means.numpy(), np.arange(10))
    expected = reference.predict(others.numpy())
    raw, _ = features_of(model, trainer, "val")
    assert np.array_equal(penultimate.classify(model.net, raw).argmax(1).numpy(), expected)


def test_constants_that_change_nothing_leave_the_predictions_of_the_start(digits_run):
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    state = state_of(digits_run.folder)
    weight, bias = state["fc.weight"], state["fc.bias"]
    for method, options, of_start in (
        (LogitAdjustment, {"tau": 0.0}, bias),
        (MiSLAS, still, bias),
        (TauNormalisation, {"tau": 0.0}, torch.zeros(10)),
        (LWS, still, torch.zeros(10)),
    ):
        model, _ = train(method, digits_run.folder, 1, **options)
        assert torch.equal(model.net.fc.weight, weight), method
        assert torch.equal(model.net.fc.bias, of_start), method


@pytest.mark.paper
def test_logit_adjustment_with_tau_1_takes_the_prior_off(digits_run):
    model, trainer = train(LogitAdjustment, digits_run.folder, 1, tau=1.0)
    state = state_of(digits_run.folder)
    counts = torch.from_numpy(trainer.datamodule.class_counts)
    assert_close(model.net.fc.bias, state["fc.bias"] - (counts / counts.sum()).log())
    assert torch.equal(model.net.fc.weight, state["fc.weight"])


def test_mislas_learns_at_two_rates_and_shifts_statistics_alone(digits_run):
    data = {"sampler": "class_balanced"}
    start = state_of(digits_run.folder)
    for shift in (False, True):
        model, trainer = train(MiSLAS, digits_run.folder, data=data, lr_factor=0.0, shift_bn=shift)
        assert [group["lr_scale"] for group in trainer.optimizers[0].param_groups] == [1.0, 0.0]
        ratios = model.net.fc.weight / start["fc.weight"]
        assert_close(ratios, model.scales[0][:, None].expand_as(ratios), atol=1e-4, rtol=1e-4)
        assert_close(model.net.fc.bias, model.scales[0] * start["fc.bias"])
        changed = {k for k, v in model.net.state_dict().items() if not torch.equal(v, start[k])}
        moved = {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"} if shift else set()
        assert changed == {"fc.weight", "fc.bias"} | moved
    model, _ = train(MiSLAS, digits_run.folder, data=data, lr_factor=0.5)
    ratios = model.net.fc.weight / start["fc.weight"]
    assert (ratios - ratios[:, :1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        (LogitAdjustment, {"data": {"val_fraction": 0.0}}, "init_from"),
        (LogitAdjustment, {"backbone": "three_experts"}, "backbone"),
        (MiSLAS, {"head_smoothing": 1.5}, "head_smoothing"),
        (ClassMeans, {"init_from": Trained("nowhere")}, "nowhere"),
    ],
)
def test_what_no_head_can_start_from_is_refused(digits_run, method, options, word):
    with pytest.raises(UserError, match=word):
        train(method, digits_run.folder, 1, **options)


def test_a_head_without_a_place_for_a_bias_and_a_class_without_images_are_refused(
    digits_run, monkeypatch
):
    model, _ = train(LogitAdjustment, digits_run.folder, 1, tau=1.0)
    model.net.fc.bias = None
    with pytest.raises(UserError, match="bias"):
        model.set_heads()
    counts = property(lambda self: np.array([0, *[5] * 9]))
    monkeypatch.setattr(LongTailDataModule, "class_counts", counts)
    for method in (LogitAdjustment, ClassMeans):
        with pytest.raises(UserError, match="no training images"):
            train(method, digits_run.folder, 1)

import math

import pytest
import torch
import yaml
from support import TINY
from torch.testing import assert_close

from ltbench.corrections import tau_normalised
from ltbench.methods import LWS, TauNormalisation
from ltbench.methods.decoupled import scaled_logits
from ltbench.models import penultimate
from ltbench.models.weights import read
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
    if method == "TauNormalisation":  # which learns nothing
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


@pytest.mark.parametrize("method", ["LWS", "TauNormalisation"])
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


@pytest.mark.parametrize("class_", [LWS, TauNormalisation])
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
def test_configs_have_the_constants_of_the_sheet():
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

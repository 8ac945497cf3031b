"""PaCo: its loss against a slow one and the paper's numbers, its queue, SAM, exact resume."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from scipy.special import log_softmax
from support import fit

from ltbench.data import LongTailDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.errors import UserError
from ltbench.methods.paco import KeyQueue, PaCo, paco_loss
from ltbench.optim.sam import LPFSGD, SAM
from ltbench.optim.schedules import Constant, epoch_of


def build(seed=0, data=None, **options):
    """A data module with two views of the digits and a small model drawn from ``seed``."""
    L.seed_everything(seed, verbose=False)
    defaults = {"imbalance_factor": 10, "largest": 40, "val_fraction": 0.2, "batch_size": 16}
    views = {"augment": [RandomCrop(1)], "views": {"key": [RandomCrop(2)]}}
    module = LongTailDataModule("digits", **{**defaults, **views, **(data or {})})
    small = {"backbone": "tiny_net", "queue": 24, "dim": 8, "lr_schedule": Constant()}
    return PaCo(10, 1, **{**small, **options}), module


class Steps(Callback):
    """Call ``look(model, batch)`` before and after every step; keep what it returns."""

    def __init__(self, look):
        self.look, self.before, self.after = look, [], []

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.before.append(self.look(model, batch))

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.after.append(self.look(model, batch))


# --- the loss ---


@pytest.mark.paper
@pytest.mark.parametrize(("positives", "expected"), [(0, 2.302585), (1, 2.269578), (2, 2.239572)])
def test_the_loss_of_an_anchor_that_knows_nothing(positives, expected):
    """arXiv 2107.12028: two classes of equal priors, four contrasted samples, all logits 0."""
    prior = torch.tensor([[0.5, 0.5]]).log()
    positive = torch.arange(4)[None] < positives
    loss = paco_loss(prior, torch.zeros(1, 4), torch.tensor([0]), positive, alpha=0.05)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def slow_loss(class_logits, similarities, targets, positive, alpha, beta):
    losses = []
    for logits, similar, target, same in zip(
        class_logits, similarities, targets, positive, strict=True
    ):
        log_p = log_softmax(np.concatenate([logits, similar]))
        total, weight = beta * log_p[target], beta
        for k in np.flatnonzero(same):
            total += alpha * log_p[len(logits) + k]
            weight += alpha
        losses.append(-total / weight)
    return np.mean(losses)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 9), st.integers(0, 99), st.floats(0, 1))
def test_the_loss_is_the_slow_one(anchors, classes, samples, seed, alpha):
    draw = np.random.default_rng(seed)
    class_logits = draw.normal(0, 3, (anchors, classes))
    similarities = draw.normal(0, 3, (anchors, samples))
    left_out = draw.random((anchors, samples)) < 0.2
    similarities[left_out] = -np.inf
    targets = draw.integers(0, classes, anchors)
    positive = (draw.random((anchors, samples)) < 0.3) & ~left_out
    arguments = [torch.from_numpy(x) for x in (class_logits, similarities, targets, positive)]
    expected = slow_loss(class_logits, similarities, targets, positive, alpha, 0.7)
    assert float(paco_loss(*arguments, alpha, 0.7)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_samples_the_loss_is_balanced_softmax():
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    nothing = torch.full((6, 3), -torch.inf), targets, torch.zeros(6, 3, dtype=torch.bool)
    assert torch.allclose(paco_loss(logits, *nothing), F.cross_entropy(logits, targets))


def test_gradients_are_finite_where_samples_are_left_out():
    logits = torch.randn(3, 2, requires_grad=True)
    raw = torch.randn(3, 4, requires_grad=True)
    left_out = torch.eye(3, 4, dtype=torch.bool)
    positive = torch.tensor([[0, 1, 0, 1]] * 3, dtype=torch.bool) & ~left_out
    paco_loss(
        logits, raw.masked_fill(left_out, -torch.inf), torch.tensor([0, 1, 1]), positive
    ).backward()
    assert logits.grad.isfinite().all()
    assert raw.grad.isfinite().all()
    assert (raw.grad[left_out] == 0).all()
    assert (raw.grad[~left_out] != 0).all()


# --- the queue ---


@given(st.integers(1, 7), st.lists(st.integers(1, 9), max_size=6))
def test_the_queue_holds_the_last_keys(length, sizes):
    queue, pushed = KeyQueue(length, 1), []
    assert queue.labels.tolist() == [-1] * length
    for size in sizes:
        labels = torch.arange(len(pushed), len(pushed) + size)
        queue.push(labels[:, None].float(), labels)
        pushed += labels.tolist()
    held = [label for label in queue.labels.tolist() if label >= 0]
    assert sorted(held) == pushed[-length:]
    filled = queue.labels >= 0
    assert torch.equal(queue.keys[filled, 0].long(), queue.labels[filled])


# --- a step ---


def state_and_batch(model, batch):
    return {name: value.clone() for name, value in model.state_dict().items()}, batch


def slow_step(model, batch, prior):
    """The loss of a batch, anchor by anchor."""

    def seen(net, images):
        return net.forward_head(net.forward_features(images), pre_logits=True)

    labels = batch["label"].numpy()
    with torch.no_grad():
        found = seen(model.net, batch["image"])
        logits = model.net.fc(found).numpy() + prior
        queries = F.normalize(model.projection(found)).numpy()
        keys = F.normalize(model.key_projection(seen(model.key_net, batch["key"]))).numpy()
    filled = model.queue.labels >= 0
    others = np.concatenate([queries, keys, model.queue.keys[filled].numpy()])
    theirs = np.concatenate([labels, labels, model.queue.labels[filled].numpy()])
    losses = []
    for i, label in enumerate(labels):
        rest = np.arange(len(others)) != i
        similarities = others[rest] @ queries[i] / model.temperature
        positive = theirs[rest] == label
        arguments = logits[i : i + 1], similarities[None], [label], positive[None]
        losses.append(slow_loss(*arguments, model.alpha, model.beta))
    return np.mean(losses)


def test_every_step_contrasts_what_it_should():
    """From the empty queue, by the half full one, to a queue that has gone round."""
    model, data = build(alpha=0.1, temperature=0.2)
    losses, original = [], model.loss_of

    def kept(*arguments):
        loss = original(*arguments)
        losses.append(loss.detach())
        return loss

    model.loss_of = kept
    steps = Steps(state_and_batch)
    fit(model, data, callbacks=[steps])
    prior = np.log(data.class_counts / data.class_counts.sum())
    twin, _ = build(alpha=0.1, temperature=0.2)
    twin.train()
    for (state, batch), loss in zip(steps.before, losses, strict=True):
        twin.load_state_dict(state)
        assert float(loss) == pytest.approx(slow_step(twin, batch, prior), rel=1e-5)
    assert (state["queue.labels"] >= 0).all()


@pytest.mark.parametrize("rule", [None, SAM(rho=0.1), LPFSGD(sigma=1e-3, parts=2)])
def test_the_average_follows_and_keys_are_kept_once_a_step(rule):
    model, data = build(momentum=0.9, gradient_rule=rule)
    steps = Steps(state_and_batch)
    fit(model, data, callbacks=[steps])
    averaged = {f"key_{name}": name for name, _ in model.named_parameters() if "key_" not in name}
    seen = []
    for (before, batch), (after, _) in zip(steps.before, steps.after, strict=True):
        for average, name in averaged.items():
            expected = 0.9 * before[average] + 0.1 * after[name]
            assert torch.allclose(after[average], expected, atol=1e-6), name
        seen += batch["label"].tolist()
        held = after["queue.labels"]
        assert sorted(held[held >= 0].tolist()) == sorted(seen[-24:])
        assert int(after["queue.place"]) == len(seen) % 24
    assert int(model.key_net.bn.num_batches_tracked) == len(steps.before)
    assert torch.allclose(model.queue.keys.norm(dim=1), torch.ones(24))
    assert all(p.isfinite().all() for p in model.parameters())


def test_only_the_network_and_its_projection_are_trained():
    model, data = build()
    trainer = fit(model, data)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    expected = [*model.net.parameters(), *model.projection.parameters()]
    assert trained == {id(p) for p in expected}
    assert all(p.grad is None for p in model.key_net.parameters())


def test_prediction_has_no_prior():
    model, data = build()
    fit(model, data)
    images = torch.randn(5, 1, 8, 8)
    model.eval()
    assert torch.equal(model(images), model.net(images))


def test_both_views_are_drawn_apart():
    model, data = build()
    steps = Steps(lambda model, batch: batch)
    fit(model, data, callbacks=[steps])
    for batch in steps.before:
        assert batch["image"].shape == batch["key"].shape
        assert not torch.equal(batch["image"], batch["key"])


# --- what it needs ---


def test_a_second_view_is_needed():
    model, data = build(data={"views": None})
    with pytest.raises(UserError, match=r"second view .* data\.views: \{key"):
        fit(model, data)


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1}, {"temperature": 0}, {"queue": 0}, {"momentum": 1.0}, {"beta": 0.0}, {"dim": 0}],
)
def test_an_argument_out_of_range(options):
    with pytest.raises(UserError, match="PaCo"):
        PaCo(10, 1, backbone="tiny_net", **options)


def test_a_cosine_classifier_is_refused():
    with pytest.raises(UserError, match="head: linear"):
        PaCo(10, 1, backbone="tiny_net", head="cosine")


# --- resumed, and on several ranks ---

CONFIG = """
seed_everything: 3
trainer: {max_epochs: 4, accelerator: cpu, devices: 1, enable_progress_bar: false}
model:
  class_path: PaCo
  init_args: {backbone: tiny_net, queue: 50, dim: 8, gradient_rule: SAM}
data:
  class_path: LongTailDataModule
  init_args:
    imbalance_factor: 10
    largest: 60
    batch_size: 32
    augment: [{class_path: RandomCrop, init_args: {padding: 1}}]
    views:
      key:
        - class_path: RandomCrop
          init_args: {padding: 2}
"""


@pytest.mark.parametrize("step", [9, 17])
def test_a_resumed_run_is_the_whole_one(step, ltbench, tmp_path, monkeypatch):
    """Bit for bit: the average, the queue and its place are part of the checkpoint."""
    config = tmp_path / "paco.yaml"
    config.write_text(CONFIG)
    (tmp_path / "whole").mkdir()
    assert ltbench("fit", "--config", config, cwd=tmp_path / "whole").code == 0
    original = PaCo.on_train_batch_start

    def stop(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PaCo, "on_train_batch_start", stop)
        assert ltbench("fit", "--config", config).code == 130
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    assert "Going on from" in done.out
    one, other = (
        torch.load(next(home.glob("runs/*/checkpoints/last.ckpt")), weights_only=True)
        for home in (tmp_path / "whole", tmp_path)
    )
    assert one["global_step"] == other["global_step"]
    assert "queue.place" in one["state_dict"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


SCRIPT = """
import sys
import timm.models, torch
from lightning.pytorch.callbacks import Callback
from pathlib import Path
from torch import nn
from ltbench.cli import main

class FlatNet(nn.Module):
    def __init__(self, num_classes=10, in_chans=1):
        super().__init__()
        self.features, self.fc = nn.Linear(64 * in_chans, 16), nn.Linear(16, num_classes)
    def get_classifier(self):
        return self.fc
    def forward_features(self, x):
        return self.features(x.flatten(1)).tanh()
    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.fc(x)
    def forward(self, x):
        return self.forward_head(self.forward_features(x))

@timm.models.register_model
def flat_net(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):
    return FlatNet(**{k: v for k, v in kwargs.items() if k != "cache_dir"})

class Keep(Callback):
    def on_train_end(self, trainer, module):
        name = "rank%d_of_%d.pt" % (trainer.global_rank, trainer.world_size)
        torch.save(module.state_dict(), Path(name))

if __name__ == "__main__":
    main()
"""


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["Plain", "SAM"])
def test_two_ranks_train_what_one_trains(rule, tmp_path):
    """Without batch norm and augmentation a step of two ranks is that of one, to rounding."""
    (tmp_path / "ranks.py").write_text(SCRIPT)
    config = yaml.safe_load(CONFIG)
    config["model"]["init_args"] |= {"backbone": "flat_net", "queue": 64, "gradient_rule": rule}
    config["data"]["init_args"] |= {"augment": [], "views": {"key": []}, "val_fraction": 0.2}
    config["trainer"] |= {"limit_train_batches": 5, "max_epochs": 2}
    (tmp_path / "paco.yaml").write_text(yaml.safe_dump(config))
    for ranks, strategy in ((1, "auto"), (2, "ddp")):
        options = ["--trainer.devices", str(ranks), "--trainer.strategy", strategy]
        words = ["fit", "--config", "paco.yaml", "--trainer.callbacks+=ranks.Keep", *options]
        done = subprocess.run(
            [sys.executable, "ranks.py", *words, "--name", f"of_{ranks}"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LTBENCH_TRUST": "ranks"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    first, second, alone = (
        torch.load(tmp_path / f"{name}.pt") for name in ("rank0_of_2", "rank1_of_2", "rank0_of_1")
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if name.startswith("queue."):
            alone[name], value = alone[name].sort(0).values, value.sort(0).values
        assert torch.allclose(value.float(), alone[name].float(), atol=1e-5), name


# --- shipped configs ---

CONFIGS = Path(__file__).parents[2] / "configs"
CIFAR = {"alpha": 0.01, "temperature": 0.05, "queue": 1024, "dim": 32}
LARGE = {"alpha": 0.05, "temperature": 0.2, "queue": 8192, "dim": 128}


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


@pytest.mark.paper
@pytest.mark.parametrize(
    ("name", "backbone", "constants", "rate", "decay"),
    [
        ("cifar10", "resnet32_cifar", CIFAR, 0.05, 5e-4),
        ("cifar100", "resnet32_cifar", CIFAR, 0.05, 5e-4),
        ("imagenetlt", "resnet50", LARGE, 0.02, 5e-4),
        ("inat", "resnet50", LARGE, 0.02, 1e-4),
    ],
)
def test_recipes_have_the_constants_of_the_paper(name, backbone, constants, rate, decay):
    config = read(f"paco_{name}")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == 400
    assert (model["backbone"], data["batch_size"]) == (backbone, 128)
    assert {key: model[key] for key in constants} == constants
    assert (model["momentum"], model.get("beta", 1.0)) == (0.999, 1.0)
    assert model["optimizer"]["init_args"] == {"lr": rate, "momentum": 0.9, "weight_decay": decay}
    kinds = [transform["class_path"] for transform in data["augment"]]
    schedule = model["lr_schedule"]["init_args"]
    assert epoch_of(schedule["warmup"], 400) == 10
    if constants is CIFAR:
        changes = [(epoch_of(point, 400), factor) for point, factor in schedule["milestones"]]
        assert changes == [(320, 0.1), (360, 0.01)]
        assert kinds == ["RandomCrop", "HorizontalFlip", "AutoAugment", "Cutout"]
        assert data["views"]["key"][0]["init_args"]["scale"] == [0.2, 1.0]
    else:
        assert model["lr_schedule"]["class_path"] == "Cosine"
        assert kinds == ["HorizontalFlip", "RandAugment"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenetlt", "inat"])
def test_pairs_with_and_without_sam_differ_in_the_gradient_rule_alone(name):
    """The radii of LDAM's teachers, arXiv 2212.13827: none is published for PaCo."""
    with_sam, without = read(f"pacosam_{name}"), read(f"paco_{name}")
    rule = with_sam["model"]["init_args"].pop("gradient_rule")
    assert rule == read(f"ldamdrwsam_{name}")["model"]["init_args"]["gradient_rule"]
    assert with_sam == without

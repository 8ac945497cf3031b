"""DeiT-LT through the trainer: what student and teacher see, what each head learns, resuming."""

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import support
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import accuracy_score
from support import weights
from torch.nn import functional as F

from ltbench import records
from ltbench.data import LongTailDataModule
from ltbench.data.sources.files import IMAGENET_MEAN
from ltbench.data.transforms.basic import RandomCrop
from ltbench.data.transforms.randaugment import RandAugment
from ltbench.errors import UserError
from ltbench.methods import stages
from ltbench.methods.deit_lt.distillation import drw_weights
from ltbench.methods.deit_lt.method import DeiTLT
from ltbench.methods.erm import Reweighting
from ltbench.methods.stages import Trained
from ltbench.optim.accumulation import MicroBatches, parts
from ltbench.optim.sam import SAM
from ltbench.optim.schedules import DeiTCosine, epoch_of
from ltbench.optim.step import Step

DIGITS = {"imbalance_factor": 10, "largest": 60, "val_fraction": 0.2, "batch_size": 32}
STUDENT = {
    "backbone": "deit_tiny_distilled_patch4_32",
    "backbone_args": {
        **{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "drop_path_rate": 0.1,
    },
    "optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05),
    "decay_norms": False,
}


fit = functools.partial(support.fit, limit_val_batches=0)


@pytest.fixture(scope="module")
def teacher(digits_run):
    """The finished run of the session as a teacher."""
    return Trained(str(digits_run.folder))


def build(seed=0, data=None, **options):
    L.seed_everything(seed, verbose=False)
    module = LongTailDataModule("digits", **{**DIGITS, **(data or {})})
    return DeiTLT(10, 1, **{**STUDENT, **options}), module


def train(epochs=1, callbacks=(), trainer=None, **options):
    model, data = build(**options)
    return model, fit(model, data, epochs, callbacks, **(trainer or {}))


class Steps(Callback):
    """Keep what each step prepared, with its epoch and the weights of DIST."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer, pl_module):
        original = pl_module.prepare_step

        def prepare_step(batch):
            labels = batch["label"].clone()
            prepared = original(batch)
            self.seen.append((trainer.current_epoch, labels, prepared, pl_module.weight))
            return prepared

        pl_module.prepare_step = prepare_step


# --- what student and teacher see ---


def test_the_teacher_sees_the_students_own_mixed_images(teacher):
    model, data = build(teacher=teacher, data={"augment": [RandomCrop(1)]})
    images = {"teacher": [], "student": []}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            for role, module in (
                ("teacher", pl_module.teacher.network),
                ("student", pl_module.net.patch_embed),
            ):
                module.register_forward_pre_hook(
                    lambda module, args, role=role: images[role].append(args[0].clone())
                )

    steps = Steps()
    fit(model, data, callbacks=[Look(), steps])
    assert len(images["teacher"]) == len(images["student"]) > 4
    for seen, learnt in zip(images["teacher"], images["student"], strict=True):
        assert torch.equal(seen, learnt)
    for (_, _, prepared, _), learnt in zip(steps.seen, images["student"], strict=True):
        assert torch.equal(prepared["image"], learnt)
        assert torch.equal(prepared["taught"], model.teacher.network(learnt).argmax(1))
        assert prepared["target"].shape == (len(learnt), 10)
        assert torch.allclose(prepared["target"].sum(1), torch.ones(len(learnt)))
    shares = torch.cat([prepared["target"] for _, _, prepared, _ in steps.seen])
    assert ((shares > 0.02) & (shares < 0.9)).any()


def test_both_are_brought_to_their_own_size(teacher):
    options = {**STUDENT["backbone_args"], "img_size": 56}
    model, data = build(teacher=teacher, teacher_size=8, backbone_args=options, mixup=0, cutmix=0)
    steps = Steps()
    fit(model, data, callbacks=[steps], limit_train_batches=1)
    _, _, prepared, _ = steps.seen[0]
    assert prepared["image"].shape[1:] == (1, 56, 56)
    view = model.teacher.view(prepared["image"])
    assert view.shape[1:] == (1, 8, 8)
    assert torch.equal(view, prepared["image"][:, :, 3::7, 3::7])  # no antialiasing: each 7th pixel
    assert model.outputs(torch.randn(2, 1, 8, 8))[""].shape == (2, 10)


def test_the_teacher_is_given_the_statistics_that_it_was_trained_with(teacher):
    model, data = build(teacher=teacher)
    data.source.mean, data.source.std = (0.2,), (0.5,)
    fit(model, data, limit_train_batches=1)
    pixels = torch.rand(3, 1, 8, 8)
    view = model.teacher.view((pixels - 0.2) / 0.5)
    torch.testing.assert_close(view, (pixels - 0.305) / 0.376)


@pytest.mark.parametrize("mix_in_drw", [False, True])
def test_drw_starts_at_its_epoch_and_ends_mixing_unless_told_otherwise(teacher, mix_in_drw):
    steps, rule = Steps(), Reweighting(0.5, beta=0.99)
    options = {"teacher": teacher, "reweighting": rule, "mix_in_drw": mix_in_drw}
    _, trainer = train(4, [steps], **options)
    expected = drw_weights(torch.from_numpy(trainer.datamodule.class_counts), 0.99)
    for epoch, labels, prepared, weight in steps.seen:
        assert (weight is None) == (epoch < 2)
        assert weight is None or torch.allclose(weight, expected)
        if epoch < 2 or mix_in_drw:
            assert prepared["target"].is_floating_point()
        else:
            assert torch.equal(prepared["target"], labels)
    assert {epoch for epoch, *_ in steps.seen} == {0, 1, 2, 3}


def test_repeatable_whatever_else_draws(teacher):
    options = {"teacher": teacher, "data": {"augment": [RandomCrop(1)]}}
    one, _ = train(2, **options)

    class Draw(Callback):
        def on_train_batch_end(self, *args):
            torch.rand(3)
            np.random.rand(3)

    same, _ = train(2, [Draw()], **options)
    assert torch.equal(weights(one), weights(same))
    other, _ = train(2, seed=1, **options)
    assert not torch.equal(weights(one), weights(other))


# --- the loss ---


def by_hand(model, prepared, weight, form="normalised", soft=False):
    """Both terms for a whole batch in NumPy."""
    net = copy.deepcopy(model.net).double().eval()
    with torch.no_grad():
        tokens = net.forward_features(prepared["image"].double())
        cls, dist = (
            z.log_softmax(1).numpy() for z in (net.head(tokens[:, 0]), net.head_dist(tokens[:, 1]))
        )
    targets = prepared["target"]
    if not targets.is_floating_point():
        targets = F.one_hot(targets, 10)
    first = -(targets.numpy() * cls).sum(1).mean()
    taught = prepared["taught"].numpy()
    if soft:
        teacher = prepared["taught"].double().log_softmax(1).numpy()
        losses = (np.exp(teacher) * (teacher - dist)).sum(1) / 10
        taught = taught.argmax(1)
    else:
        losses = -dist[np.arange(len(dist)), taught]
    if weight is None:
        return first, losses.mean()
    w = weight.double().numpy()[taught]
    return first, (w * losses).sum() / (w.sum() if form == "normalised" else len(w))


@pytest.mark.paper
@pytest.mark.parametrize(
    ("options", "form", "soft"),
    [
        ({}, "normalised", False),
        ({"reweighting": Reweighting()}, "normalised", False),
        ({"reweighting": Reweighting(), "drw_form": "paper"}, "paper", False),
        ({"reweighting": Reweighting(), "mix_in_drw": True}, "normalised", False),
        ({"distillation": "soft", "teacher_scale": 3.0}, "normalised", True),
        ({"distillation": "soft", "reweighting": Reweighting()}, "normalised", True),
        ({"alpha": 0.2}, "normalised", False),
    ],
    ids=["plain", "drw", "drw-paper", "drw-mixed", "soft", "soft-drw", "alpha"],
)
def test_the_loss_is_that_of_the_paper(teacher, options, form, soft):
    model, data = build(teacher=teacher, **options)
    found = []

    class Look(Steps):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            prepared = pl_module.prepare_step({k: v.clone() for k, v in batch.items()})
            pl_module.net.eval()  # without drop-path
            loss = pl_module.loss_of(prepared)[0].item()
            pl_module.net.train()
            found.append((loss, by_hand(pl_module, prepared, pl_module.weight, form, soft)))

        def on_fit_start(self, trainer, pl_module):
            """Take no notice of what steps prepare."""

    fit(model, data, callbacks=[Look()])
    assert len(found) > 4
    for loss, (cls, dist) in found:
        assert loss == pytest.approx((1 - model.alpha) * cls + model.alpha * dist, rel=1e-4)


@pytest.mark.parametrize(("alpha", "trained"), [(0.0, "head."), (1.0, "head_dist.")])
def test_each_head_learns_from_its_own_term_alone(teacher, alpha, trained):
    model, data = build(teacher=teacher, alpha=alpha)
    before = copy.deepcopy(model.net.state_dict())
    fit(model, data, limit_train_batches=1)
    moved = {
        name
        for name, value in model.net.state_dict().items()
        if name.startswith("head") and not torch.equal(value, before[name])
    }
    # Weight decay moves weights alone, so biases tell.
    assert {name for name in moved if name.endswith("bias")} == {f"{trained}bias"}


def test_cls_may_be_trained_with_a_loss_of_long_tails(teacher):
    losses = {}
    for name in ("cross_entropy_loss", "balanced_softmax_loss"):
        _, trainer = train(teacher=teacher, loss=name, trainer={"limit_train_batches": 1})
        losses[name] = trainer.callback_metrics
    ours, theirs = losses.values()
    assert ours["train/dist_loss"] == theirs["train/dist_loss"]
    assert ours["train/cls_loss"] != theirs["train/cls_loss"]


def test_without_a_teacher_both_heads_learn_the_labels():
    steps = Steps()
    model, trainer = train(12, [steps], reweighting=Reweighting(0.75), mixup=0, cutmix=0)
    for epoch, labels, prepared, weight in steps.seen:
        assert torch.equal(prepared["taught"], prepared["target"])
        assert (weight is not None) == (epoch >= 9)
        assert epoch < 9 or torch.equal(prepared["target"], labels)
    metrics = trainer.callback_metrics
    assert max(metrics["train/cls_loss"], metrics["train/dist_loss"]) < 1.9  # ln 10 = 2.3
    assert model.teacher is None
    assert model.lineage == []


# --- batches in parts ---


def test_parts_cut_up_a_batch():
    assert parts(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert parts(10, None) == [slice(0, 10)]
    assert parts(4, 4) == [slice(0, 4)]


def test_the_gradient_of_parts_is_that_of_the_batch():
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(3, 1), torch.randn(10, 3)
    for rule in (MicroBatches(4), MicroBatches(64)):
        step = Step(layer, lambda x: layer(x).square().mean(), inputs, 10, 0, 1, torch.Generator())
        loss = rule.backward(step)
        expected = layer(inputs).square().mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(layer.weight.grad, torch.autograd.grad(expected, layer.weight)[0])


def test_a_micro_batch_is_mixed_and_averaged_by_itself(teacher):
    """The published code's accumulation: a lambda and a weighted mean for each pass."""
    options = {"teacher": teacher, "reweighting": Reweighting(), "mix_in_drw": True}
    options |= {"backbone_args": {**STUDENT["backbone_args"], "drop_path_rate": 0.0}}
    steps = Steps()
    model, data = build(micro_batch=8, **options)
    start = copy.deepcopy(model)
    trainer = fit(model, data, callbacks=[steps], limit_train_batches=1)
    _, _, prepared, weight = steps.seen[0]
    found = []
    for part in parts(32, 8):
        piece = {name: tensor[part] for name, tensor in prepared.items()}
        found.append(by_hand(start, piece, weight))
        # Every image of a part shares its lambda with the partner from the part's other end.
        torch.testing.assert_close(
            piece["target"].sum(0), (piece["target"] + piece["target"].flip(0)).sum(0) / 2
        )
    cls, dist = np.mean(found, axis=0)
    loss = trainer.callback_metrics["train/loss"]
    assert loss.item() == pytest.approx((cls + dist) / 2, rel=1e-4)
    assert trainer.callback_metrics["train/cls_loss"].item() == pytest.approx(cls, rel=1e-4)


@pytest.mark.parametrize(
    ("batch", "micro", "near"), [(30, 8, "24 or 32"), (6, 8, "take 8,"), (100, 64, "64 or 128")]
)
def test_a_batch_that_does_not_divide_is_refused_with_numbers_that_would(batch, micro, near):
    model, data = build(micro_batch=micro, data={"batch_size": batch})
    with pytest.raises(UserError, match=near):
        fit(model, data)


def test_micro_batches_exclude_other_rules():
    with pytest.raises(UserError, match="micro_batch"):
        build(micro_batch=8, gradient_rule=SAM())


def test_sam_sees_the_same_images_and_answers_twice(teacher):
    _, trainer = train(2, teacher=teacher, gradient_rule=SAM(rho=0.05))
    assert trainer.callback_metrics["train/perturbed_loss"].isfinite()
    assert trainer.global_step == 2 * trainer.num_training_batches


# --- the teacher ---


def test_the_teacher_is_no_part_of_what_is_trained(teacher):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.teacher.network.training)

    model, data = build(teacher=teacher, ema_decay=0.9)
    fit(model, data, callbacks=[Look()], epochs=2)
    assert not any(seen)
    names = set(model.state_dict()) | {name for name, _ in model.named_parameters()}
    assert not any("teacher" in name for name in names)
    fresh = stages.load(teacher, 10, 1, role="teacher").network
    for ours, theirs in zip(
        model.teacher.network.state_dict().values(), fresh.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_teacher_is_measured_before_the_student_starts(teacher, digits_run):
    model, data = build(teacher=teacher)
    with pytest.raises(ZeroDivisionError):
        fit(model, data, callbacks=[Stop()])
    (lineage,) = model.lineage
    assert lineage["role"] == "teacher"
    record = records.read_record(digits_run.folder / "record.json")
    tested = record["metrics"]["last"]["test"]
    for name, value in lineage["metrics"]["test"].items():
        expected = float("nan") if tested[name] is None else tested[name]
        assert value == pytest.approx(expected, nan_ok=True), name
    assert lineage["metrics"]["val"]["accuracy"] > 0.2


class Stop(Callback):
    def on_train_start(self, *args):
        raise ZeroDivisionError


def test_a_plain_state_dict_is_a_teacher_too(teacher, digits_run, tmp_path):
    state = stages.load(teacher, 10, 1, role="teacher").network.state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "plain.pth")
    plain = Trained(str(tmp_path / "plain.pth"), backbone="tiny_net")
    one, _ = train(teacher=teacher)
    two, _ = train(teacher=plain)
    assert torch.equal(weights(one), weights(two))


def unsafe(path):
    torch.save({"a": Path()}, path)
    return {"path": str(path), "backbone": "tiny_net"}


def too_many_classes(path):
    torch.save(stages.build_backbone("tiny_net", 11, 1).state_dict(), path)
    return {"path": str(path), "backbone": "tiny_net"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: {"path": str(path)}, "no trained network"),
        (unsafe, "safely"),
        (too_many_classes, "does not fit"),
    ],
    ids=["missing", "unsafe", "classes"],
)
def test_teachers_that_cannot_be_are_refused_before_training(tmp_path, make, message):
    model, data = build(teacher=Trained(**make(tmp_path / "teacher.pth")))
    with pytest.raises(UserError, match=message):
        fit(model, data)


def test_a_teacher_of_another_image_size_is_refused(teacher, tmp_path):
    large = {**STUDENT["backbone_args"], "img_size": 16}
    model, data = build(teacher=teacher, backbone_args=large)
    with pytest.raises(UserError, match="teacher_size: 8"):
        fit(model, data)
    path, vit = tmp_path / "vit.pth", STUDENT["backbone"]
    torch.save(stages.build_backbone(vit, 10, 1, **large).state_dict(), path)
    teacher = Trained(str(path), backbone=vit, backbone_args=large)
    model, data = build(teacher=teacher)
    with pytest.raises(UserError, match="cannot take images of 8 pixels"):
        fit(model, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "tiny_net", "backbone_args": {}}, "no DIST token"),
        ({"alpha": 1.5}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"smoothing": 2.0}, "smoothing"),
        ({"micro_batch": 0}, "micro_batch"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_only_what_a_run_does_is_recorded_as_a_deviation(teacher):
    plain, _ = train(teacher=teacher, trainer={"limit_train_batches": 1})
    assert [text.split()[0] for text in plain.deviations] == ["The", "Images"]
    plain.data.source.mean = IMAGENET_MEAN
    assert [text.split()[0] for text in plain.deviations] == ["The"]
    options = {"backbone_args": {**STUDENT["backbone_args"], "img_size": 16}, "teacher_size": 8}
    options |= {"reweighting": Reweighting(), "data": {"augment": [RandAugment()]}}
    other, _ = train(teacher=teacher, trainer={"limit_train_batches": 1}, **options)
    assert list(other.deviations) == list(DeiTLT.paper.deviations)


# --- schedule ---


@pytest.mark.paper
@pytest.mark.parametrize(
    ("rate", "epochs", "drw", "steps", "expected"),
    [
        (2.5e-4, 1200, 1100, 12, [1e-6, 5.08e-5, 1.255e-4, 2.499897e-4, 1.3e-4, 1.408890e-5]),
        (5e-4, 1400, 1200, 57, [1e-6, 1.008e-4, None, 4.999846e-4, 2.55e-4, 3.426263e-5]),
        (5e-4, 1000, 900, 214, [1e-6, None, None, None, None, 2.199115e-5]),
    ],
    ids=["cifar", "imagenet", "inat"],
)
def test_learning_rates_of_the_paper(rate, epochs, drw, steps, expected):
    schedule = DeiTCosine(5 / epochs, start=1e-6 / rate, floor=1e-5 / rate)
    for epoch, value in zip((0, 1, 2.5, 5, epochs / 2, drw), expected, strict=True):
        found = rate * schedule.factor(round(epoch * steps), epochs * steps)
        assert value is None or found == pytest.approx(value, rel=1e-6), epoch
    if steps == 57:  # t = 2.5 falls between two steps
        around = [rate * schedule.factor(step, epochs * steps) for step in (142, 143)]
        assert np.mean(around) == pytest.approx(2.505e-4)


# --- whole runs ---

RUN = """
seed_everything: 3
trainer: {max_epochs: 4, accelerator: cpu, devices: 1, enable_progress_bar: false}
model:
  class_path: ltbench.methods.deit_lt.method.DeiTLT
  init_args:
    backbone: deit_tiny_distilled_patch4_32
    backbone_args:
      {img_size: 8, patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1}
    reweighting: {start: 0.75}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 3.0e-3, weight_decay: 0.05}
    decay_norms: false
    lr_schedule: {class_path: ltbench.optim.schedules.DeiTCosine, init_args: {warmup: 0.1}}
    ema_decay: 0.9
    micro_batch: 16
data:
  class_path: LongTailDataModule
  init_args:
    source: digits
    imbalance_factor: 10
    largest: 60
    val_fraction: 0.2
    batch_size: 32
    augment: [{class_path: RandomCrop, init_args: {padding: 1}}]
"""


@pytest.fixture
def run(tmp_path, digits_run):
    path, config = tmp_path / "student.yaml", yaml.safe_load(RUN)
    config["model"]["init_args"]["teacher"] = {"path": str(digits_run.folder)}
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_run_records_its_heads_and_its_teacher(ltbench, run, tmp_path, digits_run):
    done = ltbench("fit", "--config", run)
    assert done.code == 0, done.err
    assert "Teacher on test, %: accuracy" in done.out
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert record["method"] == "deit_lt"
    (lineage,) = record["lineage"]
    theirs = records.read_record(digits_run.folder / "record.json")
    assert lineage["job_id"] == theirs["job_id"]
    accuracy = theirs["metrics"]["last"]["test"]["accuracy"]
    assert lineage["metrics"]["test"]["accuracy"] == pytest.approx(accuracy)
    metrics = record["metrics"]["last"]["test"]
    plain = {name for name in metrics if "/" not in name and name != "per_class_recall"}
    for head in ("cls", "dist"):
        assert {f"{head}/{name}" for name in plain} <= metrics.keys()

    model, data = build()
    data.setup()
    state = stages.read(folder / "checkpoints" / "last.ckpt")["state_dict"]
    model.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
    images = data.dataset("test")
    with torch.no_grad():
        logits = model.eval().outputs(data.normalise(images.images))
    for head, scores in logits.items():
        name = f"{head}/accuracy" if head else "accuracy"
        expected = accuracy_score(images.labels, scores.argmax(1))
        assert metrics[name] == pytest.approx(expected), head
    torch.testing.assert_close(logits[""], (logits["cls"] + logits["dist"]) / 2)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(ltbench, run, tmp_path, monkeypatch):
    """Stopped in the third of four epochs, with mixing, drop-path, averaging and micro-batches."""
    straight = tmp_path / "straight"
    straight.mkdir()
    assert ltbench("fit", "--config", run, cwd=straight).code == 0
    after = DeiTLT.after_step

    def stop(self, step):
        after(self, step)
        if self.trainer.global_step == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeiTLT, "after_step", stop)
        assert ltbench("fit", "--config", run).code == 130
    done = ltbench("fit", "--config", run)
    assert done.code == 0, done.err
    assert "Going on from" in done.out
    (one,), (other,) = ((place / "runs").iterdir() for place in (straight, tmp_path))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (records.read_record(folder / "record.json") for folder in (one, other))
    for key in ("metrics", "lineage", "steps", "images_seen"):
        assert first[key] == second[key], key
    a, b = (stages.read(folder / "checkpoints" / "last.ckpt") for folder in (one, other))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_train_one_student(run, tmp_path):
    """Each has a teacher of its own; gradients of micro-batches are averaged once a step."""
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
import support, torch
from lightning.pytorch.callbacks import Callback
from ltbench.cli import main

class Keep(Callback):
    def on_train_end(self, trainer, module):
        state = [p.detach() for p in module.parameters()], module.lineage[0]["metrics"]
        torch.save(state, f"rank{{trainer.global_rank}}.pt")

if __name__ == "__main__":
    main()
"""
    (tmp_path / "processes.py").write_text(script)
    words = ["fit", "--config", run, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    words += ["--model.micro_batch", 8, "--model.ema_decay", "null"]
    words += ["--trainer.callbacks+=processes.Keep"]
    done = subprocess.run(
        [sys.executable, "processes.py", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LTBENCH_TRUST": "processes"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Teacher on test") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert repr(first[1]) == repr(second[1])  # some are NaN
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert (record["world_size"], record["status"]) == (2, "done")
    found = records.read_record(Path(record["lineage"][0]["path"]).parents[1] / "record.json")
    expected = found["metrics"]["last"]["test"]["accuracy"]
    for metrics in (first[1], record["lineage"][0]["metrics"]):
        assert metrics["test"]["accuracy"] == pytest.approx(expected)


# --- shipped configs ---

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ("deitlt_cifar10", "deitlt_cifar100", "deitlt_imagenetlt", "deitlt_inat")
OURS = (*RECIPES, "deitlt_tiny_cifar10", "deit_tiny_cifar10")


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", OURS)
def test_a_shipped_config_runs(name, ltbench, tmp_path, digits_run):
    """On digits, with a student of no size; the recipe is otherwise as it is shipped."""
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    options = {
        "data.source": "digits",
        "data.imbalance_factor": 10,
        "data.largest": 60,
        "data.profile": "exp",
        "data.batch_size": 16,
        "model.backbone": "deit_tiny_distilled_patch4_32",
        "model.backbone_args": small,
        "trainer.max_epochs": 2,
        "trainer.limit_train_batches": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
    }
    if name in RECIPES:
        options["model.micro_batch"] = 8
    if "decoding" in read(name)["data"]["init_args"]:
        options |= {"data.decoding": "null", "data.image_size": "null"}
    if name != "deit_tiny_cifar10":
        options |= {"model.teacher.path": digits_run.folder, "model.teacher_size": 8}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = ltbench("fit", "--config", CONFIGS / f"{name}.yaml", *words)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert (record["status"], record["name"], record["steps"]) == ("done", name, 4)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("name", "epochs", "drw", "rate", "batch", "teacher_size", "mixed"),
    [
        ("deitlt_cifar10", 1200, 1100, 2.5e-4, 1024, 32, False),
        ("deitlt_cifar100", 1200, 1100, 2.5e-4, 1024, 32, False),
        ("deitlt_imagenetlt", 1400, 1200, 5e-4, 2048, None, True),
        ("deitlt_inat", 1000, 900, 5e-4, 2048, None, True),
    ],
)
def test_recipes_have_the_constants_of_the_paper(
    name, epochs, drw, rate, batch, teacher_size, mixed
):
    config = read(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == epochs
    assert (model["backbone"], model["backbone_args"]) == (
        "deit_base_distilled_patch16_224",
        {"drop_path_rate": 0.1},
    )
    assert (data["batch_size"], model["micro_batch"]) == (batch, 128)
    rates = model["optimizer"]["init_args"]
    assert rates == {"lr": rate, "weight_decay": 0.05}
    assert rate == 5e-4 * (batch / 4) / 512  # the published rule leaves accumulation out
    assert model["decay_norms"] is False
    assert epoch_of(model["reweighting"]["start"], epochs) == drw
    assert model["reweighting"]["beta"] == 0.9999
    schedule = DeiTCosine(**model["lr_schedule"]["init_args"])
    assert epoch_of(schedule.warmup, epochs) == 5
    assert rate * schedule.start == pytest.approx(1e-6)
    assert rate * schedule.floor == pytest.approx(1e-5)
    assert (model["alpha"], model["distillation"]) == (0.5, "hard")
    assert (model["mixup"], model["cutmix"], model["smoothing"]) == (0.8, 1.0, 0.1)
    assert (model["mix_in_drw"], model.get("teacher_size")) == (mixed, teacher_size)
    assert data["sampler"] == "repeated"
    crop = data["decoding"]["random_crop"] if mixed else None
    assert crop in (None, [0.08, 1.0])
    kinds = [transform["class_path"] for transform in data["augment"]]
    assert kinds[-3:] == ["HorizontalFlip", "RandAugment", "RandomErasing"]
    assert (kinds[0] == "RandomResizedCrop") == (crop is None)


def test_the_pair_with_and_without_distillation_differs_in_the_teacher_alone():
    with_teacher, without = read("deitlt_tiny_cifar10"), read("deit_tiny_cifar10")
    assert with_teacher["model"]["init_args"].pop("teacher") == {"path": "runs/teacher"}
    assert with_teacher == without

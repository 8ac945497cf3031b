"""SelMix from a trained start: what it looks at, what it draws, what it trains, what it refuses."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import timm.models
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.metrics import confusion_matrix
from support import fit, run_command
from torch import nn
from torch.testing import assert_close

from ltbench.data import LongTailDataModule
from ltbench.data.protocols import ReleasedProtocol
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.transforms.basic import RandomCrop
from ltbench.errors import UserError
from ltbench.methods.selmix.gain import pair_gains, selective, smooth
from ltbench.methods.selmix.method import SelMix
from ltbench.methods.stages import Trained
from ltbench.models import penultimate
from ltbench.objectives import OBJECTIVES, joint_confusion
from ltbench.optim.sam import SAM
from ltbench.records import read_record
from ltbench.runs.callbacks.anomalies import Anomalies


class SmallNet(nn.Module):
    """One convolution, batch norm and a linear classifier, with timm's way into the features."""

    def __init__(self, num_classes=10, in_chans=3):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(4 * 16, num_classes)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward_head(self, x, pre_logits=False):
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@timm.models.register_model
def small_net(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):
    return SmallNet(**{k: v for k, v in kwargs.items() if k != "cache_dir"})


START = """
seed_everything: 1
trainer: {max_epochs: 12, accelerator: cpu, devices: 1, enable_progress_bar: false}
model:
  class_path: ERM
  init_args:
    backbone: small_net
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}
    lr_schedule: Cosine
data:
  class_path: SemiSupervisedDataModule
  init_args: &data
    source: digits
    protocol:
      class_path: ReleasedProtocol
      init_args: {n1: 40, rho_l: 20, m1: 60, rho_u: 20, val_per_class: 20}
    batch_size: 32
    mu: 0
    steps_per_epoch: 10
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a finished run on labelled images alone, not to be changed."""
    home = tmp_path_factory.mktemp("start")
    (home / "start.yaml").write_text(START)
    done = run_command("fit", "--config", home / "start.yaml", cwd=home)
    assert done.code == 0, done.err
    (folder,) = (home / "runs").iterdir()
    return folder


def digits(**options):
    return SemiSupervisedDataModule(
        **{
            "protocol": ReleasedProtocol(40, 20, 60, 20, val_per_class=20),
            "batch_size": 32,
            "mu": 0,
            "augment": [RandomCrop(1)],
        }
        | options
    )


def sgd(lr=0.01):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, weight_decay=5e-4)


def build(start, data=None, **options):
    L.seed_everything(0, verbose=False)
    defaults = {"init_from": Trained(str(start)), "cycle": 5, "optimizer": sgd()}
    return SelMix(10, 1, **defaults | options), data or digits()


def train(start, data=None, epochs=2, callbacks=(), **options):
    model, data = build(start, data, **options)
    return model, fit(model, data, epochs, callbacks, check_val_every_n_epoch=100)


class Looks(Callback):
    """Keep what each look found, when the record would, and the network that looked."""

    def __init__(self):
        self.traces, self.found, self.nets, self.batches = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.nets.append(copy.deepcopy(pl_module.net).eval())
        self.batches.append(batch)

    def on_train_epoch_end(self, trainer, pl_module):
        self.traces.append({name: value.clone() for name, value in pl_module.traces.items()})
        self.found.append(dict(trainer.callback_metrics))


def measure(net, data, split):
    """Labels, predictions and features of a split, image by image."""
    with torch.no_grad():
        batches = list(data.evaluation_batches(split, torch.device("cpu")))
        found = torch.cat([penultimate.features(net, batch["image"]) for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
    return labels, net.fc(found).argmax(1), found


def min_recall(net, data, split):
    labels, predictions, _ = measure(net.eval(), data, split)
    counts = confusion_matrix(labels, predictions.detach())
    return (counts.diagonal() / counts.sum(1)).min()


def test_each_objective_rises_above_the_start(start):
    data = digits()
    data.setup()
    before = Looks()
    train(start, data, epochs=1, callbacks=[before])
    model, _ = train(start, epochs=15, cycle=20, sharpness=2.0)
    assert min_recall(model.net, data, "val") > min_recall(before.nets[0], data, "val") + 0.1
    assert min_recall(model.net, data, "test") > min_recall(before.nets[0], data, "test") + 0.1


def test_a_look_gives_the_gains_of_the_validation_images(start):
    looks = Looks()
    model, trainer = train(start, epochs=3, callbacks=[looks], objective="hmean_recall")
    data = trainer.datamodule
    values = []
    for net, traces, found in zip(looks.nets, looks.traces, looks.found, strict=True):
        labels, predictions, features = measure(net, data, "val")
        counts = torch.from_numpy(confusion_matrix(labels, predictions))
        smoothed = joint_confusion(counts, 0.5)
        centroids = torch.stack([features[labels == c].double().mean(0) for c in range(10)])
        slopes = model.held_out.objective.logit_gradient(smoothed, model.multipliers)
        with torch.no_grad():
            gains = pair_gains(centroids, net.fc.weight, net.fc.bias, slopes)
        expected = smooth(selective(gains, 10.0))
        assert_close(traces["pair_shares"], expected.float(), atol=1e-5, rtol=1e-4)
        assert_close(traces["first_shares"], expected.sum(1))
        assert "lambda" not in traces  # of a mean there are none
        assert float(found["train/largest_share"]) == pytest.approx(
            float(selective(gains, 10.0).max()), rel=1e-3
        )
        values.append(float(model.held_out.objective.value(joint_confusion(counts))))
        assert float(found["train/objective"]) == pytest.approx(values[-1])
        assert float(found["train/positive_gains"]) == pytest.approx(
            float((gains > 0).float().mean())
        )
        assert float(found["train/largest_gain"]) == pytest.approx(float(gains.max()), rel=1e-4)
    assert_close(torch.tensor(model.history.actual).double(), torch.tensor(values).double().diff())
    assert len(model.history.predicted) == 3


def test_a_step_mixes_features_and_learns_the_label_of_the_first(start):
    model, _ = train(start, epochs=1)
    images = torch.randn(8, 1, 8, 8)
    labels, share = torch.tensor([3, 1, 0, 9]), torch.tensor([[0.6], [0.7], [0.9], [1.0]])
    first, second = images.chunk(2)
    batch = {"image": first, "label": labels, "partner": {"image": second}}
    prepared = model.prepare_step(batch) | {"share": share}
    net = copy.deepcopy(model.net).eval()
    one, other = net.forward_head(net.forward_features(images), pre_logits=True).chunk(2)
    expected = F.cross_entropy(net.fc(share * one + (1 - share) * other), labels)
    assert_close(model.loss_of(prepared), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(model.loss_of(prepared), expected, rtol=0.05, atol=0.05)


def test_weights_of_the_first_are_uniform_above_their_least(start):
    model, _ = train(start, epochs=1, min_share=0.7)
    torch.manual_seed(0)
    images = {"image": torch.zeros(2000, 1, 1, 1)}
    batch = {**images, "label": torch.zeros(2000, dtype=torch.long), "partner": images}
    share = model.prepare_step(batch)["share"]
    assert share.shape == (2000, 1)
    assert 0.7 <= share.min() < 0.701
    assert 0.999 < share.max() <= 1
    assert float(share.mean()) == pytest.approx(0.85, abs=0.01)


def test_only_the_classifier_moves_at_the_full_rate(start):
    looks = Looks()
    model, _ = train(start, epochs=1, callbacks=[looks])
    weight, bias, backbone = model.optimizers().param_groups
    assert [len(group["params"]) for group in (weight, bias, backbone)] == [1, 1, 1]
    assert [group["initial_lr"] for group in (weight, bias, backbone)] == [0.01, 0.01, 0.001]
    assert [group["weight_decay"] for group in (weight, bias, backbone)] == [5e-4, 0, 5e-4]
    before, after = looks.nets[0].state_dict(), model.net.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"conv.weight", "fc.weight", "fc.bias"}


def test_batches_hold_pairs_of_the_labelled_images(start):
    looks = Looks()
    _, trainer = train(start, epochs=1, callbacks=[looks], policy="class_balanced")
    split = trainer.datamodule.splits["train"]
    label_of = dict(zip(split.indices.tolist(), split.labels.tolist(), strict=True))
    assert len(looks.batches) == 5
    for batch in looks.batches:
        assert len(batch["image"]) == len(batch["partner"]["image"]) == 32
        first, second = batch["index"], batch["partner"]["index"]
        labels = [label_of[index] for index in first.tolist()]
        assert labels == batch["label"].tolist()
        assert labels == [label_of[index] for index in second.tolist()]


def test_pseudo_labels_are_renewed_each_cycle_and_true_labels_stay_hidden(start):
    looks = Looks()
    data = digits(oracle=True)
    model, _ = train(
        start, data, epochs=3, callbacks=[looks], partners="unlabelled", optimizer=sgd(0.2)
    )
    truth = data.oracle_labels()
    seen = []
    for net, found in zip(looks.nets, looks.found, strict=True):
        _, labels, _ = measure(net, data, "unlabelled")
        accuracy = (labels == truth).double().mean()
        assert float(found["train/pseudo_label_accuracy"]) == pytest.approx(float(accuracy))
        seen.append(labels)
    assert not torch.equal(seen[0], seen[-1])
    assert torch.equal(model.sampler.second.rows, seen[-1].argsort(stable=True))

    looks = Looks()
    train(start, epochs=1, callbacks=[looks], partners="unlabelled")
    assert "train/pseudo_label_accuracy" not in looks.found[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_the_shared_module_can_be_fine_tuned_towards(start, objective):
    looks = Looks()
    model, trainer = train(start, epochs=1, cycle=1, callbacks=[looks], objective=objective)
    trainer.validate(model, trainer.datamodule, verbose=False)
    assert model.monitor in trainer.callback_metrics
    assert 0 <= float(looks.found[0]["train/objective"]) < 1
    assert float(looks.traces[0]["pair_shares"].sum()) == pytest.approx(1)


@pytest.mark.parametrize("policy", ["uniform", "class_balanced", "greedy"])
def test_controls_draw_their_pairs(start, policy):
    looks = Looks()
    train(start, epochs=2, callbacks=[looks], policy=policy)
    for traces in looks.traces:
        shares = traces["pair_shares"]
        if policy == "greedy":
            assert shares.max() == 1
        else:
            shape = torch.ones(10, 10) if policy == "uniform" else torch.eye(10)
            assert_close(shares, shape / shape.sum())


@pytest.mark.parametrize(("options", "told"), [({"sharpness": 1e6}, 1), ({"policy": "greedy"}, 0)])
def test_a_sharpness_that_leaves_one_pair_is_told_once(start, options, told, caplog):
    train(start, epochs=2, callbacks=[Anomalies()], **options)
    assert caplog.text.count("one pair of classes has 100.0% of the share") == told


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "mean_recall_coverage", "partners": "unlabelled"},
        {"gradient_rule": SAM(0.05), "ema_decay": 0.9},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(start, tmp_path, options):
    def save(folder):
        every = {"save_top_k": -1, "save_on_train_epoch_end": True}
        return [ModelCheckpoint(tmp_path / folder, "{epoch}", **every)]

    whole, _ = train(start, epochs=4, callbacks=save("whole"), **options)
    resumed, data = build(start, **options)
    middle = tmp_path / "whole/epoch=1.ckpt"
    fit(resumed, data, 4, save("new"), resume=middle, check_val_every_n_epoch=100)
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert whole.history == resumed.history


def test_a_plain_state_dict_is_a_start(start, tmp_path):
    state = torch.load(start / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    torch.save(weights, tmp_path / "weights.pt")
    looks = Looks()
    plain = Trained(str(tmp_path / "weights.pt"), backbone="small_net")
    model, _ = train(start, epochs=1, callbacks=[looks], init_from=plain)
    first = looks.nets[0].state_dict()
    assert all(torch.equal(first[name], value) for name, value in weights.items())
    assert model.lineage[0]["role"] == "init_from"
    assert "sha256" in model.lineage[0]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"init_from": None}, {}, "name its run with --model.init_from.path"),
        ({"objective": "recall"}, {}, "unknown objective 'recall'"),
        ({"cycle": 0}, {}, "cycle 0 at least 1"),
        ({"init_from": Trained("nowhere")}, {}, "no trained network nowhere"),
        ({}, {"protocol": ReleasedProtocol(40, 20, 60, 20, 0)}, "validation images"),
        ({}, {"protocol": ReleasedProtocol(40, 20, 60, 20, 19)}, None),
        ({}, {"protocol": ReleasedProtocol(41, 20, 60, 20, 20)}, "trained on other images"),
    ],
)
def test_what_cannot_start_is_refused(start, options, data, message):
    if message is None:
        train(start, digits(**data), epochs=1, **options)
        return
    with pytest.raises(UserError, match=message):
        train(start, digits(**data), **options)


def test_validation_images_of_every_class_are_needed(start):
    data = digits()
    data.setup()
    val = data.splits["val"]
    kept = val.labels != 4
    data.splits["val"] = type(val)(val.part, val.indices[kept], val.labels[kept])
    with pytest.raises(UserError, match=r"no image of 1 of 10 classes \(class 4\)"):
        train(start, data)


def test_an_objective_at_its_optimum_is_said_to_be(start):
    data = digits()
    data.setup()
    net = SmallNet(10, 1)
    looks = Looks()
    train(start, data, epochs=1, callbacks=[looks])
    # Validate on images that the start predicts right, as many of each class.
    labels, predictions, _ = measure(looks.nets[0], data, "val")
    val, right = data.splits["val"], (labels == predictions).numpy()
    rows = np.concatenate([np.flatnonzero(right & (val.labels == c))[:3] for c in range(10)])
    assert len(net.get_classifier().weight) == 10
    again = digits()
    again.setup()
    again.splits["val"] = type(val)(val.part, val.indices[rows], val.labels[rows])
    with pytest.raises(UserError, match="at its optimum already"):
        train(start, again, count_smoothing=0.0)


def test_other_starts_are_refused(start, tmp_path):
    torch.save(SmallNet(7, 1).state_dict(), tmp_path / "seven.pt")
    seven = Trained(str(tmp_path / "seven.pt"), backbone="small_net")
    with pytest.raises(UserError, match="does not fit its backbone"):
        train(start, init_from=seven)
    cosine = SmallNet(10, 1)
    cosine.fc = nn.Linear(64, 10, bias=False)
    torch.save(cosine.state_dict(), tmp_path / "cosine.pt")
    with pytest.raises(UserError, match="not linear in the features"):
        train(
            start,
            init_from=Trained(str(tmp_path / "cosine.pt"), backbone="small_net", head="cosine"),
        )
    torch.save(SmallNet(10, 1).state_dict(), tmp_path / "ten.pt")
    plain = Trained(str(tmp_path / "ten.pt"), backbone="small_net")
    data = LongTailDataModule("digits", imbalance_factor=5, val_fraction=0.3)
    with pytest.raises(UserError, match="partners: unlabelled needs unlabelled images"):
        train(start, data, partners="unlabelled", init_from=plain)


def test_features_that_are_not_finite_are_named(start, tmp_path):
    weights = SmallNet(10, 1)
    weights.conv.weight.data.fill_(torch.nan)
    torch.save(weights.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(UserError, match="features of the network are not finite"):
        train(start, init_from=Trained(str(tmp_path / "nan.pt"), backbone="small_net"))


@pytest.fixture
def config(start, tmp_path):
    settings = yaml.safe_load(START)
    settings["trainer"]["max_epochs"] = 3
    settings["model"] = {
        "class_path": "SelMix",
        "init_args": {"init_from": {"path": str(start)}, "partners": "unlabelled", "cycle": 4},
    }
    path = tmp_path / "selmix.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_leaves_its_start_as_it_was_and_says_what_it_did(start, config, ltbench, tmp_path):
    files = {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}
    done = ltbench("fit", "--config", config)
    assert done.code == 0, done.err
    assert files == {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}

    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder / "record.json")
    assert (record["status"], record["method"], record["stage"]) == ("done", "selmix", "fine-tune")
    assert record["lineage"][0]["role"] == "init_from"
    assert record["lineage"][0]["job_id"] == read_record(start / "record.json")["job_id"]
    assert record["steps"] == 12
    with np.load(folder / "traces.npz") as traces:
        assert traces["pair_shares"].shape == (3, 10, 10)
        assert traces["positive_gains"].shape == traces["objective"].shape == (3,)
        assert traces["actual_vs_predicted_change"].shape == (2, 2)
        assert traces["lambda"].shape == (3, 10)
    table = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)
    assert {"trainobjective", "trainpredicted_change", "trainactual_change"} <= set(
        table.dtype.names
    )

    # Its checkpoint is tested, and starts another run, without what it started from.
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    tested = ltbench(
        "test", "--config", folder / "config.yaml", "--ckpt_path", folder / "checkpoints/last.ckpt"
    )
    assert tested.code == 0, tested.err
    assert settings["model"]["class_path"].endswith("SelMix")
    again = ltbench("fit", "--config", config, "--model.init_from.path", folder, "--name", "again")
    assert again.code == 0, again.err


def test_a_missing_start_is_one_line(config, refused):
    message = refused("fit", "--config", config, "--model.init_from.path", "runs/none")
    assert "there is no trained network runs/none" in message


SCRIPT = """
import sys
sys.path[:0] = {paths}
import test_selmix, torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from ltbench.cli import main

class Keep(Callback):
    def on_train_end(self, trainer, pl_module):
        kept = [pl_module.sampler.bounds, *(p.data for p in pl_module.net.parameters())]
        torch.save(kept, f"rank{{trainer.global_rank}}.pt")

if __name__ == "__main__":
    main()
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_agree_on_the_shares_and_take_the_same_steps(config, tmp_path):
    here = Path(__file__).parent
    script = SCRIPT.format(paths=[str(here), str(here.parent)])
    (tmp_path / "processes.py").write_text(script)
    found = {}
    for ranks, strategy in ((1, "auto"), (2, "ddp")):
        done = subprocess.run(
            [
                *(sys.executable, "processes.py", "fit", "--config", config),
                *("--name", f"on{ranks}", "--trainer.max_epochs", "1"),
                *("--trainer.callbacks+=processes.Keep",),
                *("--trainer.devices", str(ranks), "--trainer.strategy", strategy),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LTBENCH_TRUST": "processes"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found[ranks] = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(ranks)]
    first, second = found[2]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert_close(first[0], found[1][0][0])

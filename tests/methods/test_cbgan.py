"""CBGAN through the command line on the digits, and the two small problems that show its effect."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import TINY, run_command
from torch import nn
from torch.testing import assert_close

from ltbench.data.sources.folder import Folder
from ltbench.methods.cbgan.balance import ClassBalance
from ltbench.methods.cbgan.losses import gan_loss
from ltbench.methods.cbgan.method import CBGAN, Balance
from ltbench.methods.generative.module import GenerativeModule
from ltbench.methods.stages import Trained
from ltbench.metrics.generation import kl_to_uniform
from ltbench.models.gan import Architecture
from ltbench.records import read_record

GAN = """
seed_everything: 3
trainer: {max_epochs: 4, check_val_every_n_epoch: 2, accelerator: cpu, devices: 1,
          enable_progress_bar: false}
model:
  class_path: CBGAN
  init_args:
    architecture: {image_size: 8, width: 4, latent: 8}
    balance: {update_every: 4, pending: 0}
    ema_decay: 0.8
    ema_start: 6
    samples: 90
    watch_samples: 40
data:
  class_path: LongTailDataModule
  init_args: {source: digits, imbalance_factor: 10, largest: 60, val_fraction: 0.0,
              watch_test: true, batch_size: 32, eval_batch_size: 32}
"""
MODEL = "--model"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A classifier on long-tailed digits, an annotator on all of them, and a finished GAN."""
    home = tmp_path_factory.mktemp("gan")
    (home / "tiny.yaml").write_text(TINY)
    (home / "gan.yaml").write_text(GAN)
    net = [f"{MODEL}.backbone", "resnet32_cifar"]
    all_digits = ["--name", "annotator", "--data.init_args.profile", "natural", *net]
    for words in ([], [*all_digits, "--trainer.max_epochs", 2]):
        done = run_command("fit", "--config", "tiny.yaml", *words, cwd=home)
        assert done.code == 0, done.err
    classifier, annotator = next(home.glob("runs/tiny-*")), next(home.glob("runs/annotator-*"))
    words = [
        *("--config", home / "gan.yaml", f"{MODEL}.classifier.path", classifier),
        *(f"{MODEL}.annotator.path", annotator, f"{MODEL}.fid_features.path", annotator),
    ]
    done = run_command("fit", *words, cwd=home)
    assert done.code == 0, done.err
    (gan,) = home.glob("runs/gan-*")
    return SimpleNamespace(
        path=home, words=words, classifier=classifier, annotator=annotator, gan=gan, out=done.out
    )


def metric(home):
    job = read_record(home.annotator / "record.json")["job_id"]
    return f"fid[resnet32_cifar:{job[:8]}]"


def state(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def only_gan(path):
    (folder,) = path.glob("runs/gan-*")
    return folder


# --- what a run leaves ---


def test_a_run_leaves_its_record(home):
    record = read_record(home.gan / "record.json")
    assert (record["status"], record["method"], record["epochs"]) == ("done", "cbgan", 4)
    images = record["data"]["images"]["train"]
    assert record["steps"] == 2 * 4 * -(-images // 32)  # one of each player for each batch
    roles = {entry["role"]: entry["job_id"] for entry in record["lineage"]}
    assert roles["classifier"] == read_record(home.classifier / "record.json")["job_id"]
    assert roles["annotator"] == roles["fid_features"] != roles["classifier"]
    found = record["metrics"]["last"]["test"]
    classes = ("kl_to_uniform", "min_class_share", "confidence")
    assert found.keys() == {
        *(metric(home), f"per_class_{metric(home)}", "generated_classes"),
        *classes,
        *(f"in_loop/{name}" for name in classes),
    }
    counts = found["generated_classes"]
    assert sum(counts) == 90
    assert found["kl_to_uniform"] == pytest.approx(kl_to_uniform(counts))
    assert found["min_class_share"] == min(counts) / 90
    assert found[f"per_class_{metric(home)}"] == [None] * 10  # 40 images for 64 features
    assert metric(home).replace("fid", "FID") in home.out


def test_a_run_leaves_curves_and_pictures(home):
    import pandas as pd

    curves = pd.read_csv(home.gan / "metrics.csv")
    assert {"train/discriminator_loss", "train/generator_loss", "train/balance"} <= set(curves)
    watched = curves["test_watched/kl_to_uniform"]
    assert watched.notna().tolist() == [False, True, False, True]
    with np.load(home.gan / "traces.npz") as traces:
        assert traces["generated_classes"].sum(1).tolist() == [40, 40]
        assert traces["generated_classes.epoch"].tolist() == [1, 3]
        assert traces["class_frequency"].shape == traces["balance_weights"].shape == (4, 10)
        assert_close(traces["balance_weights"].sum(1), np.full(4, 10.0))
        weights = state(home.gan)["regulariser.weights"].numpy()
        assert np.array_equal(traces["balance_weights"][-1], weights)
        assert not np.array_equal(traces["balance_weights"][0], weights)
    pictures = {path.name for path in (home.gan / "samples").iterdir()}
    assert pictures == {"epoch_00002.png", "epoch_00004.png", "last.png"}
    (stored,) = (home.path / "runs/reference_features").iterdir()
    assert stored.suffix == ".npz"


def test_the_checkpoint_holds_no_classifier(home):
    names = {name.partition(".")[0] for name in state(home.gan)}
    assert names == {"generator", "averaged", "discriminator", "regulariser", "scaling"}


def test_test_gives_what_the_record_says(home):
    """The stored reference features are the same as fresh ones, for any batch size."""
    last = ["--ckpt_path", home.gan / "checkpoints/last.ckpt"]
    (stored,) = (home.path / "runs/reference_features").iterdir()
    before = stored.read_bytes()
    out = [run_command("test", *home.words, *last, cwd=home.path).out]
    stored.unlink()
    other = ["--data.init_args.eval_batch_size", 7]
    out.append(run_command("test", *home.words, *last, *other, cwd=home.path).out)
    found = read_record(home.gan / "record.json")["metrics"]["last"]["test"]
    for text in out:
        assert f"{found[metric(home)]:.3f}" in text
        assert f"{found['kl_to_uniform']:.3f}" in text
    stored.write_bytes(before)


def test_predict_writes_a_folder_that_a_classifier_trains_on(home, tmp_path):
    words = [*home.words, "--ckpt_path", home.gan / "checkpoints/last.ckpt"]
    out = tmp_path / "samples"
    done = run_command("predict", *words, f"{MODEL}.samples", 120, "--output", out, cwd=home.path)
    assert done.code == 0, done.err
    assert "120 images" in done.out
    source = Folder(out)
    assert len(source.labels("train")) == 120
    with Image.open(next(out.rglob("*.png"))) as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    again = run_command("predict", *words, "--output", out, cwd=home.path)
    assert again.code == 2
    assert "not empty" in again.err


# --- exact resume, and what stops a run ---


def stop_at(monkeypatch, step, act):
    original = CBGAN.on_train_batch_start

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step:
            act(self)
        original(self, batch, batch_idx)

    monkeypatch.setattr(CBGAN, "on_train_batch_start", hook)


def interrupt(module):
    raise KeyboardInterrupt


def test_a_resumed_run_equals_an_uninterrupted_one(home, tmp_path, monkeypatch):
    batches = -(-read_record(home.gan / "record.json")["data"]["images"]["train"] // 32)
    with monkeypatch.context() as patch:
        stop_at(patch, 2 * (2 * batches + 3), interrupt)
        assert run_command("fit", *home.words, cwd=tmp_path).code == 130
    done = run_command("fit", *home.words, cwd=tmp_path)
    assert "Going on from" in done.out
    ours, theirs = state(only_gan(tmp_path)), state(home.gan)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    records = [read_record(f / "record.json") for f in (only_gan(tmp_path), home.gan)]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["job_id"] == records[1]["job_id"]


def test_what_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    home, tmp_path, monkeypatch
):
    def spoil(module):
        with torch.no_grad():
            module.generator.linear.weight.fill_(float("nan"))

    stop_at(monkeypatch, 30, spoil)
    done = run_command("fit", *home.words, cwd=tmp_path)
    assert done.code == 2
    assert "diverged in epoch 1" in done.err
    folder = only_gan(tmp_path)
    assert read_record(folder / "record.json")["status"] == "failed"
    assert all(value.isfinite().all() for value in state(folder).values())


def test_a_generator_of_one_class_is_judged(home, tmp_path, monkeypatch):
    def constant(self, latents, labels=None):
        weight = next(self.parameters())
        image = torch.full((len(latents), 1, 8, 8), -1.0, device=weight.device)
        return image + 0 * sum(p.sum() for p in self.parameters())

    monkeypatch.setattr("ltbench.models.gan.Generator.forward", constant)
    done = run_command("fit", *home.words, "--trainer.max_epochs", 1, cwd=tmp_path)
    assert done.code == 0, done.err
    found = read_record(only_gan(tmp_path) / "record.json")["metrics"]["last"]["test"]
    assert sorted(found["generated_classes"]) == [0] * 9 + [90]
    assert found["kl_to_uniform"] == pytest.approx(2.301689, abs=1e-6)
    assert found["min_class_share"] == 0
    assert all(value.isfinite().all() for value in state(only_gan(tmp_path)).values())


# --- what is refused, and what is warned of ---


def refuse(home, tmp_path, *words, without=()):
    kept = [w for i, w in enumerate(home.words) if not {i, i - 1} & set(without)]
    done = run_command("fit", *kept, *words, cwd=tmp_path)
    assert done.code == 2, done.err
    assert not list(tmp_path.rglob("record.json"))
    return done.err


def test_mistakes(home, tmp_path):
    annotator = [f"{MODEL}.annotator.path", home.classifier]
    assert "are the same model" in refuse(home, tmp_path, *annotator)
    copied = shutil.copy(home.classifier / "checkpoints/last.ckpt", tmp_path / "copy.ckpt")
    assert "are the same model" in refuse(home, tmp_path, f"{MODEL}.annotator.path", copied)
    assert "classifier in the loop" in refuse(home, tmp_path, without=[2])
    assert "annotator.path RUN" in refuse(home, tmp_path, without=[4])
    size = f"{MODEL}.architecture.image_size"
    assert "the data has 8" in refuse(home, tmp_path, size, 16)
    assert "snresgan makes 32" in refuse(home, tmp_path, f"{MODEL}.architecture.family", "snresgan")
    bigger = ["--data.init_args.image_size", 16, size, 16]
    assert "was trained on 8 pixels, the GAN makes 16" in refuse(home, tmp_path, *bigger)
    assert "Did you mean 'cutout'" in refuse(home, tmp_path, f"{MODEL}.diffaugment", "[cutoff]")
    assert "Did you mean 'hinge'" in refuse(home, tmp_path, f"{MODEL}.loss", "hinges")
    assert "[0, 1)" in refuse(home, tmp_path, f"{MODEL}.ema_decay", 1)


def test_without_the_standard_features_the_way_out_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert "fid_features.path RUN" in refuse(home, tmp_path, without=[6])


def test_a_classifier_of_other_classes(home, tmp_path, make_images):
    counts = {"ant": 20, "bee": 20}
    make_images(tmp_path / "images/train", counts, size=8)
    data = ["--data.init_args.source", "folder", "--data.init_args.root", tmp_path / "images"]
    err = refuse(home, tmp_path, *data, "--data.init_args.profile", "natural")
    assert "has 10 classes and 1 image channels" in err


def test_samples_are_resized_where_that_is_asked_for(home, tmp_path):
    bigger = ["--data.init_args.image_size", 16, f"{MODEL}.architecture.image_size", 16]
    short = ["--trainer.max_epochs", 1, f"{MODEL}.resize", "true"]
    done = run_command("fit", *home.words, *bigger, *short, cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("role", ["classifier", "annotator"])
def test_an_untrained_judge_is_warned_of(home, tmp_path, role):
    untrained = ["--trainer.max_epochs", 1, f"{MODEL}.optimizer.init_args.lr", 0]
    run_command("fit", "--config", home.path / "tiny.yaml", *untrained, cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    words = [*home.words, f"{MODEL}.{role}.path", run, "--trainer.max_epochs", 1]
    with pytest.warns(UserWarning, match=f"the {role} has a mean recall of .* chance is 10.0%"):
        run_command("fit", *words, cwd=tmp_path)


@pytest.mark.filterwarnings("ignore:the annotator has a mean recall")
def test_an_annotator_of_the_long_tail_is_warned_of(home, tmp_path):
    words = ["--data.init_args.val_fraction", 0.2]  # as the classifier has it
    run_command("fit", "--config", home.path / "tiny.yaml", "--seed_everything", 4, cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    words = [*home.words, *words, f"{MODEL}.annotator.path", run, "--trainer.max_epochs", 1]
    with pytest.warns(UserWarning, match="long-tailed images, not balanced"):
        run_command("fit", *words, cwd=tmp_path)


def test_too_frequent_updates_are_warned_of(home, tmp_path):
    words = [f"{MODEL}.balance.update_every", 1, "--trainer.max_epochs", 1]
    with pytest.warns(UserWarning, match="3.2 images a class"):
        run_command("fit", *home.words, *words, cwd=tmp_path)


# --- baselines and variants ---


@pytest.mark.parametrize("loss", ["hinge", "relativistic_average"])
@pytest.mark.parametrize("conditioning", ["acgan", "projection"])
def test_conditional_baselines_with_several_steps(home, tmp_path, conditioning, loss):
    words = [
        *(f"{MODEL}.balance", "null", f"{MODEL}.architecture.conditioning", conditioning),
        *(f"{MODEL}.loss", loss, f"{MODEL}.diffaugment", "[color, translation, cutout]"),
        *(f"{MODEL}.discriminator_steps", 2, "--trainer.max_epochs", 2),
    ]
    done = run_command("fit", *home.words, *words, cwd=tmp_path)
    assert done.code == 0, done.err
    record = read_record(only_gan(tmp_path) / "record.json")
    batches = 2 * -(-record["data"]["images"]["train"] // 32)
    assert record["steps"] == batches + batches // 2
    names = state(only_gan(tmp_path))
    assert ("generator.blocks.0.norm.gain.weight" in names) == (conditioning != "none")
    assert not any(name.startswith("regulariser") for name in names)


CONFIGS = {p.stem: p for p in sorted(Path(__file__).parents[2].glob("configs/cbgan_*.yaml"))}


def read(name):
    return yaml.safe_load(CONFIGS[name].read_text())


def test_every_config_is_there():
    names = {"cifar10", "cifar10_baseline", "digits", "digits_baseline", "inat2019", "lsun"}
    assert CONFIGS.keys() == {f"cbgan_{name}" for name in names}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_runs_to_its_record(home, name, tmp_path):
    """With small networks, on digits of the size that it asks for."""
    config = read(name)
    architecture = config["model"]["init_args"]["architecture"]
    config["model"]["init_args"] |= {"samples": 20, "watch_samples": 20, "resize": True}
    architecture |= {"width": 2, "latent": 4}
    for option in ("largest", "num_workers"):
        config["data"]["init_args"].pop(option, None)
    digits = {"source": "digits", "profile": "natural", "image_size": architecture["image_size"]}
    config["data"]["init_args"] |= digits
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "check_val_every_n_epoch": 1}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run_command("fit", "--config", path, *home.words[2:], cwd=tmp_path)
    assert done.code == 0, done.err
    (folder,) = tmp_path.glob(f"runs/{name}-*")
    record = read_record(folder / "record.json")
    assert (record["status"], record["method"], record["steps"]) == ("done", "cbgan", 4)
    assert sum(record["metrics"]["last"]["test"]["generated_classes"]) == 20
    again = run_command("fit", "--config", folder / "config.yaml", cwd=tmp_path)
    assert f"{folder.name} is done already" in again.out


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("_baseline")])
def test_a_baseline_is_its_config_without_the_regulariser(name):
    with_it, without = read(name.removesuffix("_baseline")), read(name)
    assert with_it["model"]["init_args"].pop("balance")
    assert with_it == without


@pytest.mark.paper
def test_the_cifar_config_has_the_published_constants():
    config = read("cbgan_cifar10")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["architecture"]["family"] == "sndcgan"
    assert model["loss"] == "relativistic"
    assert model["balance"] == {
        "strength": 10,
        "forgetting": 0.5,
        "update_every": 2000,
        "start": 50,
        "pending": 512,
    }
    assert model["optimizer"]["init_args"] == {"lr": 2e-4, "betas": [0.5, 0.999], "eps": 1e-6}
    assert (model["ema_decay"], model["ema_start"], model["samples"]) == (0.9999, 20_000, 50_000)
    assert (data["batch_size"], data["imbalance_factor"], data.get("augment")) == (256, 100, None)
    batches = -(-12_406 // 256)
    assert 0 <= config["trainer"]["max_epochs"] * batches - 100_000 < batches
    lsun = read("cbgan_lsun")["model"]["init_args"]
    assert lsun["optimizer"]["init_args"] == {"lr": 2e-4, "betas": [0.0, 0.999], "eps": 1e-6}
    assert (lsun["architecture"]["family"], lsun["architecture"]["image_size"]) == ("snresgan", 64)
    assert read("cbgan_inat2019")["model"]["init_args"]["balance"]["forgetting"] == 0.005


def test_the_default_optimizer_is_the_published_one():
    (optimizer,) = {type(o): o.defaults for o in build().configure_optimizers()}.values()
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (2e-4, (0.5, 0.999), 1e-6)


def build(**options):
    torch.manual_seed(0)
    architecture = Architecture(image_size=8, width=4, latent=8)
    trained = Trained("nowhere")
    return CBGAN(10, 1, architecture, balance=Balance(), classifier=trained, **options)


def test_the_regulariser_reaches_the_generator_alone():
    model = build()
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    fake, _ = model._generated(16)
    model.regulariser(classifier(fake)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.generator.parameters())
    others = [*model.discriminator.parameters(), *model.averaged.parameters()]
    assert all(p.grad is None for p in [*others, *classifier.parameters()])


def test_the_average_is_the_generator_until_its_start(monkeypatch):
    model = build(ema_decay=0.75, ema_start=2)
    iteration = {"now": 0}
    monkeypatch.setattr(CBGAN, "iteration", property(lambda self: iteration["now"]))
    history = []
    for now in range(1, 5):
        iteration["now"] = now
        with torch.no_grad():
            for tensor in model.generator.state_dict().values():
                tensor.add_(now)
        model._average()
        history.append({name: t.clone() for name, t in model.generator.state_dict().items()})
    for name, tensor in model.averaged.state_dict().items():
        second, third, fourth = (found[name] for found in history[1:])
        if tensor.is_floating_point():
            expected = 0.75 * (0.75 * second + 0.25 * third) + 0.25 * fourth
            assert_close(tensor, expected)
        else:
            assert torch.equal(tensor, fourth)
    model.train()
    assert not any(module.training for module in model.averaged.modules())


def test_generative_modules_are_no_place_for_gan_details():
    """A class-conditional method to come needs no more than `sample` and `training_step`."""
    abstract = {n for n, m in vars(GenerativeModule).items() if hasattr(m, "__isabstractmethod__")}
    assert abstract == {"sample"}


# --- several ranks ---


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_hold_the_same_gan_and_the_same_statistics(home, tmp_path):
    script = """
from pathlib import Path
import torch
from lightning.pytorch.callbacks import Callback
from ltbench.cli import main

class KeepState(Callback):
    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"rank{trainer.global_rank}.pt")

if __name__ == "__main__":
    import sys
    sys.path.insert(0, "TESTS")
    import support  # noqa: F401  (registers tiny_net)
    main()
""".replace("TESTS", str(Path(__file__).parents[1]))
    (tmp_path / "processes.py").write_text(script)

    def run(*words):
        done = subprocess.run(
            [sys.executable, "processes.py", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LTBENCH_TRUST": "processes"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    run("fit", *home.words, *two, "--trainer.callbacks+=processes.KeepState")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    moving = ("running_mean", "running_var", "_u", "_v")  # of a rank's own images
    for name, ours in first.items():
        assert name.endswith(moving) or torch.equal(ours, second[name]), name
    folder = only_gan(tmp_path)
    found = read_record(folder / "record.json")
    assert (found["world_size"], found["status"]) == (2, "done")
    assert sum(found["metrics"]["last"]["test"]["generated_classes"]) == 90

    last = ["--ckpt_path", folder / "checkpoints/last.ckpt"]
    together = run("test", *home.words, *two, *last)
    alone = run_command("test", *home.words, *last, cwd=tmp_path).out
    assert together == alone


# --- the effect ---


class Toy:
    """Five Gaussians on a circle, 1000 to 10 points, and a classifier that knows them."""

    def __init__(self):
        angles = torch.arange(5) * 2 * torch.pi / 5
        self.modes = 2 * torch.stack([angles.cos(), angles.sin()], 1)
        counts = torch.tensor([1000, 316, 100, 31, 10])
        draws = torch.Generator().manual_seed(0)
        labels = torch.arange(5).repeat_interleave(counts)
        self.data = self.modes[labels] + 0.15 * torch.randn(len(labels), 2, generator=draws)

    def classifier(self, points):
        return -torch.cdist(points, self.modes).square() / 0.5

    def train(self, strength, seed):
        torch.manual_seed(seed)
        act = nn.LeakyReLU(0.1)
        generator = nn.Sequential(nn.Linear(8, 64), act, nn.Linear(64, 64), act, nn.Linear(64, 2))
        discriminator = nn.Sequential(
            nn.Linear(2, 64), act, nn.Linear(64, 64), act, nn.Linear(64, 1)
        )
        optimizers = [
            torch.optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.999))
            for net in (generator, discriminator)
        ]
        loss, balance = gan_loss("relativistic"), ClassBalance(5, pending=0)
        for step in range(1, 601):
            real = self.data[torch.randint(len(self.data), (128,))].requires_grad_()
            scores = discriminator(real)
            (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            fake = discriminator(generator(torch.randn(128, 8)).detach())
            penalty = 0.05 * slope.square().sum(1).mean()  # steadies the toy; no part of CBGAN
            self.step(optimizers[1], loss.discriminator(scores, fake) + penalty)
            points = generator(torch.randn(128, 8))
            adversarial = loss.generator(discriminator(real), discriminator(points))
            regulariser = balance(self.classifier(points))
            self.step(optimizers[0], adversarial + strength * regulariser)
            if step % 20 == 0:
                balance.update()
        with torch.no_grad():
            nearest = torch.cdist(generator(torch.randn(5000, 8)), self.modes).min(1)
        kl = kl_to_uniform(torch.bincount(nearest.indices, minlength=5))
        return kl, float((nearest.values < 3 * 0.15).float().mean())

    @staticmethod
    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_regulariser_balances_five_gaussians(seed):
    toy = Toy()
    balance, fidelity = zip(*(toy.train(strength, seed) for strength in (0, 1, 5)), strict=True)
    assert balance[0] > 0.5
    assert balance[1] < 0.3
    assert balance[2] < 0.05
    assert fidelity[0] > fidelity[1] > fidelity[2]  # what balance is bought with


def discs(folder, counts, seed):
    """Write 16 x 16 images of a disc of the class's hue at a random place."""
    draws = np.random.default_rng(seed)
    rows, cols = np.mgrid[:16, :16]
    for c, count in enumerate(counts):
        (folder / f"{c}").mkdir(parents=True)
        wheel = np.clip(2 - np.abs((c * 0.6 + np.array([0, 4, 2])) % 6 - 3), 0, 1)
        for i in range(count):
            radius, (y, x) = draws.uniform(3, 4.5), draws.uniform(4, 12, 2)
            inside = ((rows - y) ** 2 + (cols - x) ** 2 < radius**2)[..., None]
            image = np.where(inside, wheel, 0.15) + draws.normal(0, 0.03, (16, 16, 3))
            pixels = (image.clip(0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{c}/{i:04}.png")


DISCS = yaml.safe_load(GAN)
DISCS["trainer"] |= {"max_epochs": 26, "check_val_every_n_epoch": 26}  # 1014 iterations
DISCS["model"]["init_args"] |= {
    "architecture": {"image_size": 16, "width": 16, "latent": 32},
    "optimizer": {
        "class_path": "torch.optim.Adam",
        "init_args": {"lr": 4e-4, "betas": [0.5, 0.999], "eps": 1e-6},
    },
    "ema_start": 10**9,
    "samples": 2000,
    "watch_samples": 500,
}
DISCS["data"]["init_args"] = {
    "source": "folder",
    "profile": "natural",
    "val_fraction": 0.0,
    "batch_size": 64,
}


@pytest.mark.paper
@pytest.mark.slow
def test_the_regulariser_balances_generated_images(tmp_path):
    """On 2,478 images of ten hues, counts 1000 to 10, judged by an annotator of balanced data."""
    tail = [int(1000 * 0.01 ** (k / 9)) for k in range(10)]
    assert sum(tail) == 2478
    discs(tmp_path / "tail/train", tail, 0)
    discs(tmp_path / "balanced/train", [200] * 10, 1)
    for name in ("tail", "balanced"):
        discs(tmp_path / name / "test", [100] * 10, 2)
    tiny = yaml.safe_load(TINY)
    tiny["data"]["init_args"] = DISCS["data"]["init_args"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "gan.yaml").write_text(yaml.safe_dump(DISCS))
    runs = {}
    for name, root, net, epochs in (
        ("classifier", "tail", "tiny_net", 20),
        ("annotator", "balanced", "tiny_net", 20),
        ("fid_features", "balanced", "resnet32_cifar", 1),
    ):
        words = [
            *("--name", name, "--data.init_args.root", tmp_path / root),
            *(f"{MODEL}.backbone", net, "--trainer.max_epochs", epochs),
        ]
        done = run_command("fit", "--config", "tiny.yaml", *words, cwd=tmp_path)
        assert done.code == 0, done.err
        (runs[name],) = tmp_path.glob(f"runs/{name}-*")
        recall = read_record(runs[name] / "record.json")["metrics"]["last"]["test"]["mean_recall"]
        assert recall > 0.95 or name == "fid_features"
    found = {}
    for strength in (0, 10):
        words = [
            *("--config", "gan.yaml", "--data.init_args.root", tmp_path / "tail"),
            *(word for role, run in runs.items() for word in (f"{MODEL}.{role}.path", run)),
        ]
        balance = [f"{MODEL}.balance", "null"]
        if strength:
            balance = [f"{MODEL}.balance.strength", strength, f"{MODEL}.balance.update_every", 50]
        done = run_command("fit", *words, *balance, "--name", f"gan{strength}", cwd=tmp_path)
        assert done.code == 0, done.err
        (run,) = tmp_path.glob(f"runs/gan{strength}-*")
        found[strength] = read_record(run / "record.json")["metrics"]["last"]["test"]
    assert found[0]["kl_to_uniform"] > 0.5
    assert found[10]["kl_to_uniform"] < 0.15
    assert found[10]["min_class_share"] > 0.03

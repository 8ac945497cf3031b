"""CBGAN from the command line: record, pictures, samples, exact resume, divergence."""

import numpy as np
import pytest
import torch
from gan_digits import MODEL, only_gan, state
from PIL import Image
from support import run_command
from torch.testing import assert_close

from ltbench.data.sources.folder import Folder
from ltbench.methods.cbgan.method import CBGAN
from ltbench.metrics.generation import kl_to_uniform
from ltbench.records import read_record


def metric(home):
    job = read_record(home.annotator / "record.json")["job_id"]
    return f"fid[resnet32_cifar:{job[:8]}]"


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
    assert metric(home).replace("fid", "FID ") in home.out


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
    assert "epoch 1" in done.err
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

"""The command line: what it does, what it refuses, and that nothing finished is ever lost."""

import errno
import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ltbench import __version__, records
from ltbench.methods.erm import ERM


class OtherMethod(ERM):
    """Another class with the same arguments."""


def overlay(tmp_path, **config):
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def columns(table):
    """The numbers of a printed result table by row."""
    rows = (line.strip("│").split("│") for line in table.splitlines() if line.startswith("│"))
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


# --- the light commands ---


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_usage_names_every_command(words, ltbench):
    done = ltbench(*words)
    assert done.code == 0
    for command in ("fit", "validate", "test", "predict", "data", "list", "show"):
        assert f"\n  {command} " in done.out


def test_unknown_command_names_the_nearest(refused):
    assert "Did you mean 'fit'?" in refused("fitt")


@pytest.mark.parametrize("words", [["--version"], ["list"], ["show", "erm"], ["show", "ce_digits"]])
def test_light_commands_do_not_import_torch(words):
    code = (
        f"import sys; from ltbench.cli import main; main({words});"
        "sys.exit(bool({'torch', 'lightning', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert __version__ in done.stdout if words == ["--version"] else len(done.stdout) > 100


def test_debug_shows_the_traceback(ltbench):
    done = ltbench("fitt", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: unknown command")


# --- fit ---


def test_fit_leaves_the_files_that_the_readme_names(digits_run):
    names = {str(path.relative_to(digits_run.folder)) for path in digits_run.folder.rglob("*")}
    assert names >= {
        *("config.yaml", "record.json", "metrics.csv"),
        *("predictions_last.npz", "predictions_best.npz"),
        *("checkpoints", "checkpoints/last.ckpt", "checkpoints/best.ckpt"),
    }
    assert not [name for name in names if "part" in name]


def test_a_finished_run_is_shown_and_started_over_only_on_demand(ltbench, tiny):
    words = ["fit", "--config", tiny, "--trainer.max_epochs", 1]
    first = ltbench(*words)
    (record,) = tiny.parent.glob("runs/*/record.json")
    stamp = record.stat().st_mtime_ns
    again = ltbench(*words)
    assert (first.code, again.code) == (0, 0)
    assert "is done already" in again.out
    assert columns(again.out) == columns(first.out)
    assert record.stat().st_mtime_ns == stamp
    fresh = ltbench(*words, "--fresh", "true")
    assert record.stat().st_mtime_ns > stamp
    assert columns(fresh.out) == columns(first.out)


def test_the_same_experiment_has_the_same_folder(ltbench, tiny, tmp_path):
    words = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--name", "x"]
    ltbench("fit", "--config", tiny, *words)
    full = yaml.safe_load(tiny.read_text())
    full["model"]["class_path"] = "ltbench.methods.erm.ERM"
    full["data"]["class_path"] = "ltbench.data.datamodule.LongTailDataModule"
    full["data"]["init_args"]["num_workers"] = 1
    again = ltbench("fit", "--config", overlay(tmp_path, **full), *words)
    assert "is done already" in again.out


def test_other_images_are_another_experiment(ltbench, of_folder, images, make_images, tmp_path):
    ltbench("fit", "--config", of_folder)
    make_images(images / "val", {"ant": 2, "bee": 1, "cat": 1})
    assert "is done already" not in ltbench("fit", "--config", of_folder).out
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 2
    moved = images.rename(tmp_path / "moved")
    again = ltbench("fit", "--config", of_folder, "--data.init_args.root", moved)
    assert "is done already" in again.out


def test_links_carry_what_the_data_knows_into_the_model(ltbench, of_folder, tmp_path):
    done = ltbench("fit", "--config", of_folder)
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert weights["net.fc.weight"].shape[0] == 3
    assert weights["net.conv.weight"].shape[1] == 3
    assert weights["class_counts"].tolist() == [18, 8, 2]
    record = records.read_record(path.parents[1] / "record.json")
    assert "num_classes" not in record["config"]["model"]["init_args"]  # it would say 10


def test_lists_of_a_later_config_replace_and_plus_appends(ltbench, tiny, tmp_path):
    flip = {"class_path": "HorizontalFlip"}
    timer = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    replacing = overlay(tmp_path, data={"init_args": {"augment": [flip]}})
    appending = tmp_path / "appending.yaml"
    appending.write_text(yaml.safe_dump({"trainer": {"callbacks+": timer}}))
    words = ["--config", tiny, "--config", replacing, "--config", appending, "--config", appending]
    done = ltbench("fit", *words, "--print_config")
    composed = yaml.safe_load(done.out)
    augment = composed["data"]["init_args"]["augment"]
    assert [item["class_path"] for item in augment] == ["HorizontalFlip"]
    assert len(composed["trainer"]["callbacks"]) == 2


def test_a_checkpoint_callback_of_the_user_stays_in_the_run_folder(ltbench, tiny, tmp_path):
    words = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    done = ltbench("fit", "--config", tiny, "--trainer.max_epochs", 1, *words)
    assert done.code == 0, done.err
    folder = only_run(tmp_path)  # nothing else lies beside it
    assert (folder / "extra_checkpoints/last.ckpt").is_file()
    assert {path.stem for path in (folder / "checkpoints").iterdir()} == {"best", "last"}


def test_one_batch_is_not_all_batches(ltbench, tiny):
    words = ["fit", "--config", tiny, "--print_config", "--trainer.limit_train_batches"]
    read = [yaml.safe_load(ltbench(*words, n).out)["trainer"] for n in ("1", "1.0", "0.5")]
    assert [repr(found["limit_train_batches"]) for found in read] == ["1", "1.0", "0.5"]


# --- what a parser refuses ---

ERM_ARGS = "--model.init_args"
MISTAKES = {
    "abbreviation": (["--trainer.max_epoch", 3], "Did you mean '--trainer.max_epochs'?"),
    "shorter": (["--trainer.max_e", 3], "unknown option '--trainer.max_e'"),
    "argument": ([f"{ERM_ARGS}.clip", 3], "'clip'"),
    "group": (["--trainr.max_epochs", 3], "Did you mean '--trainer.max_epochs'?"),
    "data argument": (["--data.init_args.batchsize", 3], "'batch_size'"),
    "model class": (["--model", "EMR"], "Did you mean 'ERM'?"),
    "rule class": ([f"{ERM_ARGS}.gradient_rule", "SAMM"], "Did you mean 'SAM'?"),
    "rule argument": (
        [f"{ERM_ARGS}.gradient_rule", "SAM", f"{ERM_ARGS}.gradient_rule.rh", 1],
        "Did you mean 'rho'?",
    ),
    "value": (["--trainer.max_epochs", "ten"], "trainer.max_epochs"),
    "choice": ([f"{ERM_ARGS}.head", "cosin"], "cosin"),
    "loss": ([f"{ERM_ARGS}.loss", "vs"], "Did you mean 'vs_loss'?"),
    "constant": ([f"{ERM_ARGS}.loss", "vs_loss", f"{ERM_ARGS}.loss_args", "{gama: 1}"], "gamma"),
    "backbone": ([f"{ERM_ARGS}.backbone", "resnet32cifar"], "resnet32_cifar"),
    "backbone argument": ([f"{ERM_ARGS}.backbone_args", "{depht: 1}"], "depht"),
    "head of ldam": ([f"{ERM_ARGS}.loss", "ldam_loss"], "head: cosine"),
    "source": (["--data.init_args.source", "cifar-10"], "Did you mean 'cifar10'?"),
    "profile": (["--data.init_args.profile", "expo"], "Did you mean 'exp'?"),
    "fraction": (["--data.init_args.val_fraction", 1], "val_fraction"),
    "radius": (
        [f"{ERM_ARGS}.gradient_rule", "SAM", f"{ERM_ARGS}.gradient_rule.rho", -1],
        "at least 0",
    ),
    "imbalance": (["--data.init_args.imbalance_factor", 500], "with no image"),
    "largest": (["--data.init_args.largest", 5000], "class 0 has"),
    "epochs": (["--trainer.max_epochs", -1], "max_epochs"),
    "batch": (["--data.init_args.batch_size", 0], "batch_size"),
    "seed": (["--seed_everything", -1], "seed_everything"),
    "no seed": (["--seed_everything", "true"], "seed_everything"),
    "clipping": ([f"{ERM_ARGS}.clip_norm", -1], "clip_norm"),
    "clipping by the trainer": (["--trainer.gradient_clip_val", 1], "clip_norm"),
    "accumulation": (["--trainer.accumulate_grad_batches", 2], "accumulat"),
    "averaging": ([f"{ERM_ARGS}.ema_decay", 1], "ema_decay"),
    "mixing": ([f"{ERM_ARGS}.mixup", -1], "mixup -1.0"),
    "learning rate": (
        [f"{ERM_ARGS}.optimizer", "torch.optim.SGD", f"{ERM_ARGS}.optimizer.lr", -1],
        "Invalid learning rate",
    ),
    "optimizer": ([f"{ERM_ARGS}.optimizer", "torch.optim.SGX"], "SGX"),
    "accelerator": (["--trainer.accelerator", "gpus"], "'gpus'"),
    "precision": (["--trainer.precision", "bf16-true"], "use one of 32-true, bf16-mixed"),
    "checkpoints": (["--trainer.enable_checkpointing", "false"], "enable_checkpointing"),
}


@pytest.mark.parametrize(("words", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_on_the_command_line(words, says, refused, tiny, tmp_path):
    assert says in refused("fit", "--config", tiny, *words)
    assert not list(tmp_path.glob("runs/*/record.json"))


YAML_MISTAKES = {
    "trainer": ({"trainer": {"max_epoch": 3}}, "max_epochs"),
    "model": ({"model": {"init_args": {"clip": 3}}}, "clip"),
    "data": ({"data": {"init_args": {"batchsize": 3}}}, "batch_size"),
    "top": ({"modle": {"class_path": "ERM"}}, "model.class_path"),
    "class": ({"model": {"class_path": "EMR"}}, "Did you mean 'ERM'?"),
    "augmentation": (
        {"data": {"init_args": {"augment": [{"class_path": "RandomCorp"}]}}},
        "Did you mean 'RandomCrop'?",
    ),
}


@pytest.mark.parametrize(("config", "says"), YAML_MISTAKES.values(), ids=YAML_MISTAKES.keys())
def test_mistakes_in_a_config(config, says, refused, tiny, tmp_path):
    assert says in refused("fit", "--config", tiny, "--config", overlay(tmp_path, **config))


def test_a_config_that_is_missing_or_no_yaml(refused, tmp_path):
    assert "nowhere.yaml" in refused("fit", "--config", "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("trainer: {max_epochs: 3")
    refused("fit", "--config", broken)


def test_no_config_at_all(refused):
    assert "--config FILE" in refused("fit")


# --- evaluation, and what it takes from a checkpoint ---


def test_test_prints_what_the_record_says(ltbench, digits_run):
    before = {path: path.stat().st_mtime_ns for path in digits_run.folder.rglob("*")}
    record = records.read_record(digits_run.folder / "record.json")
    for selection in ("last", "best"):
        path = getattr(digits_run, selection)
        done = ltbench("test", "--config", digits_run.config, "--ckpt_path", path)
        assert done.code == 0, done.err
        metrics = record["metrics"][selection]["test"]
        rows = columns(done.out)
        assert rows["accuracy"] == [f"{100 * metrics['accuracy']:.1f}"]
        assert rows["H-mean recall"] == [f"{100 * metrics['hmean_recall']:.1f}"]
        worst = np.argmin(metrics["per_class_recall"])
        assert rows["class with the min recall"] == [str(worst)]
    assert {path: path.stat().st_mtime_ns for path in digits_run.folder.rglob("*")} == before


def test_validate_prints_the_metrics(ltbench, digits_run):
    done = ltbench("validate", "--config", digits_run.config, "--ckpt_path", digits_run.last)
    assert done.code == 0, done.err
    assert "hmean_recall" in done.out or "H-mean" in done.out


def test_validate_without_a_validation_split(refused, digits_run):
    words = ["--config", digits_run.config, "--ckpt_path", digits_run.last]
    assert "val_fraction" in refused("validate", *words, "--data.init_args.val_fraction", 0)


OTHERS = {
    "loss": ([f"{ERM_ARGS}.loss", "focal_loss"], "loss: checkpoint 'cross_entropy_loss'"),
    "rule": ([f"{ERM_ARGS}.gradient_rule", "SAM"], "gradient_rule"),
    "class": (["--model", "OtherMethod"], "class_path"),
}


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
@pytest.mark.parametrize(("words", "says"), OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_replaces_nothing(command, words, says, refused, digits_run, tmp_path):
    if command == "predict":
        words = [*words, "--data.predict_folder", tmp_path]
    told = refused(command, "--config", digits_run.config, *words, "--ckpt_path", digits_run.last)
    assert says in told
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_a_checkpoint_of_other_classes(refused, digits_run, of_folder):
    told = refused("test", "--config", of_folder, "--ckpt_path", digits_run.last)
    assert "num_classes: checkpoint 10, config 3" in told


def test_a_checkpoint_of_as_many_other_classes(refused, folder_run, images):
    for split in ("train", "test"):
        (images / split / "bee").rename(images / split / "wasp")
    assert "other names (ant, bee, cat, ...)" in refused("test", *folder_run)


@pytest.mark.parametrize("command", ["validate", "fit"])
def test_a_checkpoint_of_other_training_images(command, refused, digits_run):
    """They may be in this validation set; the test set is another matter."""
    words = ["--config", digits_run.config, "--data.init_args.subset_seed", 1]
    assert "other images" in refused(command, *words, "--ckpt_path", digits_run.last)


def test_a_checkpoint_is_tested_on_any_test_set_of_its_classes(ltbench, digits_run):
    words = ["--config", digits_run.config, "--data.init_args.subset_seed", 1]
    done = ltbench("test", *words, "--ckpt_path", digits_run.last)
    assert done.code == 0, done.err


def test_the_config_wins_over_the_checkpoint_where_they_may_differ(ltbench, digits_run):
    words = ["--config", digits_run.config, "--ckpt_path", digits_run.last]
    done = ltbench("test", *words, "--data.init_args.eval_batch_size", 7)
    assert done.code == 0, done.err
    metrics = records.read_record(digits_run.folder / "record.json")["metrics"]["last"]["test"]
    assert columns(done.out)["accuracy"] == [f"{100 * metrics['accuracy']:.1f}"]


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_checkpoint_must_be_given_and_exist(command, refused, digits_run):
    assert "--ckpt_path" in refused(command, "--config", digits_run.config)
    told = refused(command, "--config", digits_run.config, "--ckpt_path", "nowhere.ckpt")
    assert "nowhere.ckpt" in told


def test_fit_from_a_missing_checkpoint(refused, tiny):
    assert "nowhere.ckpt" in refused("fit", "--config", tiny, "--ckpt_path", "nowhere.ckpt")


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize("kind", ["torch", "pickle", "extra"])
def test_a_malicious_checkpoint_is_refused_unopened(command, kind, refused, digits_run, tmp_path):
    bad, trace = tmp_path / "bad.ckpt", tmp_path / "trace"
    if kind == "pickle":
        bad.write_bytes(pickle.dumps({"state_dict": Evil(trace)}))
    else:
        found = torch.load(digits_run.last, weights_only=True) if kind == "extra" else {}
        torch.save({**found, "more": Evil(trace)}, bad)
    told = refused(command, "--config", digits_run.config, "--ckpt_path", bad)
    assert "bad.ckpt" in told
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "foreign", "weights"])
def test_a_damaged_or_foreign_checkpoint(kind, refused, digits_run, tmp_path):
    bad = tmp_path / "bad.ckpt"
    whole = digits_run.last.read_bytes()
    if kind in ("foreign", "weights"):
        weights = torch.load(digits_run.last, weights_only=True)["state_dict"]
        torch.save({"state_dict": weights} if kind == "foreign" else weights, bad)
    else:
        bad.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[kind])
    assert "bad.ckpt" in refused("test", "--config", digits_run.config, "--ckpt_path", bad)


# --- predict ---


@pytest.fixture
def folder_run(ltbench, of_folder, tmp_path):
    """A classifier of the folder of images: the words that name its config and checkpoint."""
    done = ltbench("fit", "--config", of_folder, "--trainer.max_epochs", 8)
    assert done.code == 0, done.err
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    return ["--config", of_folder, "--ckpt_path", last]


def test_predict_writes_a_row_an_image(ltbench, folder_run, images, make_images, tmp_path):
    make_images(tmp_path / "new", {"ant": 3, "bee": 2}, size=30, seed=5)
    words = ["--data.predict_folder", tmp_path / "new", "--output", "out/rows.csv"]
    done = ltbench("predict", *folder_run, *words)
    assert done.code == 0, done.err
    assert "5 images" in done.out
    rows = pd.read_csv(tmp_path / "out/rows.csv")
    assert rows["image"].tolist() == [str(p) for p in sorted((tmp_path / "new").rglob("*.png"))]
    assert set(rows["class"]) <= {"ant", "bee", "cat"}
    assert (rows["class"] == rows["top1"]).all()
    assert (rows["confidence"] == rows["top1_confidence"]).all()
    top = rows[["top1_confidence", "top2_confidence", "top3_confidence"]]
    assert np.allclose(top.sum(axis=1), 1, atol=1e-5)
    assert (top.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert "top4" not in rows
    assert (rows["class"][:3] == "ant").all()  # the colours are far apart

    # The same rows in any batch size, and one table whatever the devices.
    words = [*words[:2], "--data.eval_batch_size", 2, "--trainer.devices", 2]
    again = ltbench("predict", *folder_run, *words)
    assert again.code == 0, again.err
    assert pd.read_csv(tmp_path / "predictions.csv")["class"].equals(rows["class"])


def test_predict_warns_of_a_run_that_is_not_finished(ltbench, folder_run, make_images, tmp_path):
    make_images(tmp_path / "new", {"": 2}, size=30)
    (path,) = tmp_path.glob("runs/*/record.json")
    path.write_text(path.read_text().replace('"status": "done"', '"status": "interrupted"'))
    with pytest.warns(UserWarning, match=r"last.ckpt .* not finished \(status: interrupted\)"):
        done = ltbench("predict", *folder_run, "--data.predict_folder", tmp_path / "new")
    assert done.code == 0, done.err


def test_predict_refuses_what_it_cannot_read(refused, folder_run, tmp_path):
    assert "--data.predict_folder" in refused("predict", *folder_run)
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in refused("predict", *folder_run, "--data.predict_folder", nowhere)
    bad = tmp_path / "new" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    assert str(bad) in refused("predict", *folder_run, "--data.predict_folder", bad.parent)
    assert not (tmp_path / "predictions.csv").exists()


# --- data that is not what it should be ---


def test_data_shows_the_tail(ltbench, tiny, digits_run):
    done = ltbench("data", "--config", tiny, "--output", "tail.png")
    assert done.code == 0, done.err
    record = records.read_record(digits_run.folder / "record.json")["data"]
    assert record["index_hash"] in done.out
    assert f"train: {record['images']['train']} images" in done.out
    rows = columns(done.out.replace("┃", "│"))
    counts = {int(c): int(cells[1]) for c, cells in rows.items() if c.isdigit()}
    assert counts == dict(enumerate(record["class_counts"]))
    assert rows["0"][3] == "head"
    assert rows["9"][3] == "tail"
    assert (tiny.parent / "tail.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_names_classes_that_its_font_has(ltbench, of_folder, images):
    (images / "train/ant").rename(images / "train/$a_")  # no formula
    (images / "train/bee").rename(images / "train/蜂")
    shutil.rmtree(images / "test")
    done = ltbench("data", "--config", of_folder, "--output", "tail.svg")
    assert (done.code, done.err) == (0, "")  # no warning of a missing letter
    drawn = (of_folder.parent / "tail.svg").read_text()
    assert "<!-- $a_ -->" in drawn
    assert "<!-- few: 3 -->" in drawn


def test_missing_data_folder(refused, of_folder, tmp_path):
    words = ["--config", of_folder, "--data.init_args.root", "nowhere"]
    for command in ("fit", "data"):
        assert "nowhere/train" in refused(command, *words)
    assert not (tmp_path / "runs").exists()


def test_empty_class(refused, of_folder, images):
    (images / "train/dog").mkdir()
    assert str(images / "train/dog") in refused("fit", "--config", of_folder)


def test_class_in_test_but_not_in_train(refused, of_folder, images):
    (images / "test/dog").mkdir()
    assert "'dog'" in refused("fit", "--config", of_folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_unreadable_image(split, ltbench, refused, of_folder, images, tmp_path):
    bad = images / split / "bee" / "003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert str(bad) in refused("fit", "--config", of_folder)
    with pytest.warns(UserWarning, match="left out 1 of"):
        done = ltbench("fit", "--config", of_folder, "--data.init_args.on_bad_image", "skip")
    assert done.code == 0, done.err
    (record,) = (p for p in tmp_path.glob("runs/*/record.json") if "done" in p.read_text())
    sizes = records.read_record(record)["data"]["images"]
    assert sum(sizes.values()) == 20 + 9 + 3 + 4 + 4 + 5 - 1


def test_a_folder_without_a_test_split(ltbench, of_folder, images, tmp_path):
    shutil.rmtree(images / "test")
    done = ltbench("fit", "--config", of_folder)
    if done.code:  # refused before any time was spent on training
        assert done.code == 2
        assert str(images / "test") in done.err
        assert not list(tmp_path.glob("runs/*/checkpoints/*"))
    else:
        (record,) = tmp_path.glob("runs/*/record.json")
        assert records.read_record(record)["status"] == "done"


def test_a_run_that_nothing_can_measure_says_so(ltbench, of_folder, images):
    shutil.rmtree(images / "test")
    done = ltbench("fit", "--config", of_folder, "--data.val_fraction", 0)
    assert done.code == 0, done.err
    assert "nothing was measured" in done.out


# --- a run that is stopped ---


def stop_at(monkeypatch, step, exception):
    """Raise in the hook before a training step."""
    original = ERM.on_train_batch_start

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise exception
        original(self, batch, batch_idx)

    monkeypatch.setattr(ERM, "on_train_batch_start", hook)


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def test_ctrl_c_keeps_what_is_done(ltbench, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 15, KeyboardInterrupt())
        done = ltbench("fit", "--config", tiny)
    assert done.code == 130
    assert "same command" in done.err
    assert len(done.err.strip().splitlines()) <= 3
    assert "Traceback" not in done.err
    folder = only_run(tmp_path)
    record = records.read_record(folder / "record.json")
    assert record["status"] == "interrupted"
    assert record["epochs"] == 2
    assert len(pd.read_csv(folder / "metrics.csv")) == 2
    assert (folder / "checkpoints/last.ckpt").exists()

    again = ltbench("fit", "--config", tiny)
    assert again.code == 0
    assert "Going on from" in again.out
    record = records.read_record(folder / "record.json")
    assert (record["status"], record["epochs"]) == ("done", 4)


def test_ctrl_c_while_testing(ltbench, tiny, tmp_path, monkeypatch):
    def interrupt(self, batch, batch_idx):
        raise KeyboardInterrupt

    words = ["fit", "--config", tiny, "--trainer.max_epochs", 1]
    with monkeypatch.context() as patch:
        patch.setattr(ERM, "test_step", interrupt)
        done = ltbench(*words)
    assert done.code == 130
    assert "same command" in done.err
    path = only_run(tmp_path) / "record.json"
    record = records.read_record(path)
    assert (record["status"], record["epochs"]) == ("interrupted", 1)
    assert ltbench(*words).code == 0
    record = records.read_record(path)
    assert (record["status"], record["epochs"], record["steps"]) == ("done", 1, 7)
    assert {name: "test" in found for name, found in record["metrics"].items()} == {
        "last": True,
        "best": True,
    }


def test_a_crash_is_told_and_survived(ltbench, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 8, RuntimeError("device lost"))
        with pytest.raises(RuntimeError, match="device lost"):
            ltbench("fit", "--config", tiny)
    record = records.read_record(only_run(tmp_path) / "record.json")
    assert (record["status"], record["epochs"]) == ("failed", 1)
    assert record["cause"] == "RuntimeError: device lost"
    assert ltbench("fit", "--config", tiny).code == 0


def test_a_refused_command_changes_nothing_of_an_interrupted_run(
    ltbench, refused, tiny, digits_run, tmp_path, monkeypatch
):
    words = ["fit", "--config", tiny, f"{ERM_ARGS}.loss", "focal_loss"]
    with monkeypatch.context() as patch:
        stop_at(patch, 15, KeyboardInterrupt())
        ltbench(*words)
    files = {path: path.read_bytes() for path in only_run(tmp_path).rglob("*") if path.is_file()}
    refused(*words, "--ckpt_path", digits_run.last)
    after = {path: path.read_bytes() for path in files}
    assert [str(path) for path in files if after[path] != files[path]] == []


def test_a_run_folder_can_be_moved_and_gone_on_with(ltbench, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 20, KeyboardInterrupt())
        ltbench("fit", "--config", tiny)
    whole = tmp_path / "whole"
    whole.mkdir()
    ltbench("fit", "--config", tiny, cwd=whole)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / "runs", elsewhere / "runs")
    done = ltbench("fit", "--config", tiny, cwd=elsewhere)
    assert done.code == 0, done.err
    moved, straight = (records.read_record(only_run(p) / "record.json") for p in (elsewhere, whole))
    assert moved["metrics"] == straight["metrics"]


@pytest.mark.parametrize(
    ("name", "times"),
    [("record.json", 3), ("metrics.csv", 2), ("last.ckpt", 1), ("best.ckpt", 0), ("_best.npz", 0)],
)
def test_full_disk(name, times, ltbench, tiny, tmp_path, monkeypatch):
    """After ``times`` good writes of a file, nothing at all can be written any more."""
    original, opened, full = Path.open, [], []

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_(self, mode="r", *args, **options):
        if self.name.endswith(".part"):
            opened.extend([self] * (name in self.name))
            full.extend([True] * (len(opened) > times))
            if full:
                self.touch()
                return Full()
        return original(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        done = ltbench("fit", "--config", tiny)
    check_full_disk(done, tmp_path)
    saved = (only_run(tmp_path) / "checkpoints/last.ckpt").exists()
    again = ltbench("fit", "--config", tiny)
    assert again.code == 0, again.err
    assert ("Going on from" in again.out) == saved


def check_full_disk(done, tmp_path):
    """A message and a code; what was written before is whole, and there is no litter."""
    assert done.code == 1
    assert f"disk is full while writing {Path('runs')}" in done.err
    assert len(done.err.splitlines()) <= 3
    assert "Traceback" not in done.err
    folder = only_run(tmp_path)
    assert not list(folder.rglob("*.part"))
    assert records.read_record(folder / "record.json")["status"] == "running"
    for path in folder.glob("checkpoints/*"):
        torch.load(path, weights_only=True)
    assert (folder / "config.yaml").read_text().startswith("seed_everything")


# --- several processes ---

SCRIPT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import support, torch
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from ltbench.cli import main

class KeepWeights(Callback):
    def on_train_end(self, trainer, module):
        weights = [p.detach() for p in module.parameters()]
        torch.save(weights, Path("rank%d.pt" % trainer.global_rank))

if __name__ == "__main__":
    main()
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_train_one_model_and_measure_it_once(ltbench, of_folder, tmp_path):
    """13 test images on 2 ranks: one of them has 7, none is counted twice."""
    (tmp_path / "processes.py").write_text(SCRIPT)

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
    rule = ["--model.init_args.gradient_rule", "SAM"]
    keep = ["--trainer.callbacks+=processes.KeepWeights"]
    out = run("fit", "--config", of_folder, *rule, *two, *keep)
    assert out.count("Record: ") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert (record["world_size"], record["status"]) == (2, "done")
    assert record["steps"] == -(-record["data"]["images"]["train"] // 8)
    with np.load(folder / "predictions_last.npz") as stored:
        assert stored["index"].tolist() == list(range(13))
        hits = stored["label"] == stored["prediction"]
    assert record["metrics"]["last"]["test"]["accuracy"] == hits.mean()

    words = ["--config", of_folder, *rule, "--ckpt_path", folder / "checkpoints/last.ckpt"]
    together, alone = run("test", *words, *two), ltbench("test", *words).out
    assert columns(together) == columns(alone)
    assert together.count("accuracy") == 1


@pytest.mark.slow
def test_the_demo_says_no_more_than_it_should(tmp_path):
    config = Path(__file__).parents[1] / "configs/vssam_digits.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "ltbench", "fit", "--config", config, "--trainer.max_epochs", "2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith("record.json")

"""The command line: what its commands do, and what they refuse."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import columns, only_run

from ltbench import __version__, records


def overlay(tmp_path, **config):
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


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
    "imbalance": (["--data.init_args.imbalance_factor", 500], "imbalance factor"),
    "largest": (["--data.init_args.largest", 5000], "class 0 has"),
    "epochs": (["--trainer.max_epochs", -1], "max_epochs"),
    "batch": (["--data.init_args.batch_size", 0], "batch_size"),
    "seed": (["--seed_everything", -1], "seed_everything"),
    "no seed": (["--seed_everything", "true"], "seed_everything"),
    "clipping": ([f"{ERM_ARGS}.clip_norm", -1], "clip_norm"),
    "clipping by the trainer": (["--trainer.gradient_clip_val", 1], "clip_norm"),
    "accumulation": (["--trainer.accumulate_grad_batches", 2], "accumulat"),
    "averaging": ([f"{ERM_ARGS}.ema_decay", 1], "ema_decay"),
    "mixing": ([f"{ERM_ARGS}.mixup", -1], "mixup"),
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
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
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

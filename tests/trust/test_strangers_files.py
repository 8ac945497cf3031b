"""What a stranger's config, record or plan names runs nothing, and leads nowhere.

Each payload would leave the file ``executed`` behind. All go through the real entry points.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from support import TINY, change_record, run_command

from ltbench import open_run, records
from ltbench.bench.run import reproduce
from ltbench.bench.run.jobs import Store
from ltbench.errors import UserError
from ltbench.models import build_backbone
from ltbench.records.folder import MAX_NAME
from ltbench.runs.checkpoints import RunCheckpoint, WholeCheckpoints

PAYLOAD = """
import os, pathlib, torch
from subprocess import run as borrowed
pathlib.Path("executed").touch()
class SGD(torch.optim.SGD): pass
def loss(logits, targets, class_counts, *, weight=None): return logits.sum()
"""
IN_TORCH = {  # starts a program as soon as it is built
    "class_path": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
    "init_args": {
        **{"entrypoint": "touch", "args": ["executed"], "env": {}, "local_rank_id": 0},
        **dict.fromkeys(("stdout", "stderr", "numa_options")),
    },
}
ANOTHER = {"class_path": "payload.SGD", "init_args": {"lr": 0.1}}
LIGHTNING = "lightning.pytorch"


def lightning(name, **arguments):
    return {"class_path": f"{LIGHTNING}.{name}", "init_args": arguments}


MODEL = {
    "another package": {"optimizer": ANOTHER},
    "another package, by its name alone": {"optimizer": "payload.SGD"},
    "another package, in quotes": {"optimizer": yaml.safe_dump(ANOTHER)},
    "another package, in quotes in quotes": {"optimizer": json.dumps(json.dumps(ANOTHER))},
    "another file": {"optimizer": "other.yaml"},
    "another file, from the root": {"optimizer": "{here}/other.yaml"},
    "another file, as arguments": {"optimizer": {"class_path": "other.yaml"}},
    "a program that torch starts": {"optimizer": IN_TORCH},
    "a program as the schedule": {"lr_schedule": IN_TORCH},
    "a program as the gradient rule": {"gradient_rule": IN_TORCH},
    "a program in the network's arguments": {"backbone_args": {"drop_rate": IN_TORCH}},
    "a program deep in the network's arguments": {"backbone_args": {"a": [{"b": IN_TORCH}]}},
    "a package in the network's arguments": {"backbone_args": {"act_layer": ANOTHER}},
    "a program in the constants of the loss": {"loss": "vs_loss", "loss_args": {"tau": IN_TORCH}},
    "a program in further arguments": {
        "optimizer": {"class_path": "torch.optim.SGD", "dict_kwargs": {"closure": IN_TORCH}}
    },
    "a program in place of a number": {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": IN_TORCH}}
    },
    "a function of Python": {"loss": "os.system"},
    "a function of torch": {"loss": "torch.hub.load"},
    "a loss of another package": {"loss": "payload.loss"},
    "a function of ours as the loss": {"loss": "ltbench.records.write_text"},
    "a function as the optimizer": {"optimizer": "os.system"},
    "a module of torch as the optimizer": {"optimizer": "torch.optim.optimizer.os.system"},
    "another kind of ours": {"optimizer": {"class_path": "ltbench.optim.schedules.Constant"}},
    "a start that is unpickled": {"backbone_args": {"checkpoint_path": "evil.pt"}},
    "weights from elsewhere": {"backbone_args": {"pretrained_cfg": {"file": "evil.pt"}}},
    "a start that is a pickle": {"init_from": {"path": "evil.pt"}},
    "a network from the hub": {"backbone": "hf-hub:someone/something"},
    "a network from a folder": {"backbone": "local-dir:model"},
}
DATA = {
    "a source of another package": {"source": "payload.SGD"},
    "a source that is a program": {"source": IN_TORCH},
    "a sampler that is a program": {"sampler": IN_TORCH},
    "a sampler in quotes": {"sampler": json.dumps(IN_TORCH)},
    "a profile of Python": {"profile": "os.system"},
    "an augmentation that is a program": {"augment": [IN_TORCH]},
    "an augmentation of another package": {"augment": [ANOTHER]},
    "an augmentation from another file": {"augment": ["other.yaml"]},
    "augmentations from another file": {"augment": "others.yaml"},
    "a view that is a program": {"views": {"strong": [IN_TORCH]}},
    "a decoding that is a program": {"decoding": IN_TORCH},
}
TRAINER = {
    "a callback that is a program": {"callbacks": [IN_TORCH]},
    "a callback of another package": {"callbacks": "payload.SGD"},
    "a callback from another file": {"callbacks": ["other.yaml"]},
    "a callback that calls anything": {
        "callbacks": [lightning("callbacks.LambdaCallback", on_fit_start="os.system")]
    },
    "a function for a callback": {
        "callbacks": [lightning("callbacks.BackboneFinetuning", lambda_func="os.system")]
    },
    "a module of a callback": {"callbacks": [lightning("callbacks.early_stopping.torch.hub.load")]},
    "a callback in the logger's place": {"logger": lightning("callbacks.LearningRateMonitor")},
    "a logger that reports elsewhere": {"logger": lightning("loggers.MLFlowLogger")},
    "a strategy that is a program": {"strategy": IN_TORCH},
    "a strategy with a function": {
        "strategy": lightning("strategies.DDPStrategy", ddp_comm_hook="os.system")
    },
    "an accelerator of another package": {"accelerator": ANOTHER},
    "a profiler that is a program": {"profiler": IN_TORCH},
    "a plugin that is a program": {"plugins": [IN_TORCH]},
}
PAYLOADS = [
    *(({"model": {"init_args": change}}, name) for name, change in MODEL.items()),
    *(({"data": {"init_args": change}}, name) for name, change in DATA.items()),
    *(({"trainer": change}, name) for name, change in TRAINER.items()),
    ({"model": {"class_path": "payload.SGD"}}, "another package as the model"),
    ({"model": {"class_path": "ERM", "dict_kwargs": {"x": IN_TORCH}}}, "further arguments"),
    ({"data": {"class_path": "torch.hub.load"}}, "a function of torch as the data"),
    ({"data": IN_TORCH}, "a program as the data"),
]


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.fixture
def desk(digits_run, tmp_path, monkeypatch):
    """A working folder with a payload, files that name it, and a run to spoil."""
    (tmp_path / "payload.py").write_text(PAYLOAD)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(ANOTHER))
    (tmp_path / "others.yaml").write_text(yaml.safe_dump([ANOTHER]))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "model").mkdir()
    shutil.copytree(digits_run.folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LTBENCH_TRUST", raising=False)
    monkeypatch.setattr(reproduce.subprocess, "run", in_process)
    yield tmp_path
    sys.modules.pop("payload", None)


def in_process(words, env, check):
    """Run what a reproduction starts as a process."""
    return SimpleNamespace(returncode=run_command(*words[3:], cwd=Path()).code)


def merged(settings, change):
    """A config with some of its settings replaced."""
    if not isinstance(change, dict) or "class_path" in change or not isinstance(settings, dict):
        return change
    return settings | {key: merged(settings.get(key), value) for key, value in change.items()}


def spoilt(change, desk):
    """The tiny config with a payload; the run of the desk gets it, too."""
    change = json.loads(json.dumps(change).replace("{here}", str(desk)))
    config = merged(yaml.safe_load(TINY), change)
    (desk / "evil.yaml").write_text(yaml.safe_dump(config))
    own = yaml.safe_load((desk / "run/config.yaml").read_text())
    (desk / "run/config.yaml").write_text(yaml.safe_dump(merged(own, change)))
    change_record(desk / "run", config=merged(own, change))


ENTRIES = {
    "fit": "fit --config evil.yaml",
    "dry run": "fit --config evil.yaml --dry-run",
    "data": "data --config evil.yaml",
    "test": "test --config evil.yaml --ckpt_path run/checkpoints/last.ckpt",
    "reproduce": "bench reproduce run",
}
OPENED = "analyze rank --run run"


@pytest.mark.parametrize(("change", "name"), PAYLOADS, ids=[name for _, name in PAYLOADS])
def test_a_payload_is_refused_and_runs_nothing(change, name, desk, ltbench):
    spoilt(change, desk)
    others = [words for entry, words in ENTRIES.items() if entry != "fit"]
    number = [name for _, name in PAYLOADS].index(name)
    for words in (ENTRIES["fit"], others[number % len(others)]):
        done = ltbench(*words.split())
        assert not (desk / "executed").exists(), words
        assert done.code == 2, (words, done)
        assert "Traceback" not in done.err
    assert "payload" not in sys.modules


@pytest.mark.parametrize("name", ["a program that torch starts", "a source of another package"])
def test_whoever_opens_it_refuses_it(name, desk, ltbench):
    spoilt(next(change for change, each in PAYLOADS if each == name), desk)
    for words in (*ENTRIES.values(), OPENED):
        assert ltbench(*words.split()).code == 2, words
    with pytest.raises(UserError):
        open_run("run").data  # noqa: B018 - opened at first use
    assert ltbench("show", "evil.yaml").code == 0  # a text
    assert not (desk / "executed").exists()


def test_there_are_many_payloads():
    assert len(PAYLOADS) >= 50


@pytest.mark.parametrize(
    "words",
    [
        ["--model.optimizer", "other.yaml"],
        ["--model", "other.yaml"],
        ["--data", "other.yaml"],
        ["--trainer", "other.yaml"],
        ["--trainer.callbacks+", "other.yaml"],
        ["--model.optimizer.class_path", "payload.SGD"],
        ["--config", "other.yaml", "--model.loss", "ce"],
        ["--model.help", "payload.SGD"],
        ["--model=payload.SGD"],
    ],
    ids=" ".join,
)
def test_nor_does_an_argument_open_a_second_file(words, desk, ltbench):
    (desk / "tiny.yaml").write_text(TINY)
    done = ltbench("fit", "--config", "tiny.yaml", *words)
    assert done.code == 2, done
    assert not (desk / "executed").exists()


def test_a_pipe_in_the_place_of_a_class_is_not_read(desk, refused):
    os.mkfifo(desk / "pipe.yaml")
    spoilt({"model": {"init_args": {"optimizer": "pipe.yaml"}}}, desk)
    refused("fit", "--config", "evil.yaml")  # and does not wait


@pytest.mark.parametrize("key", ["output", "fresh", "ckpt_path", "config"])
def test_a_config_does_not_say_what_a_command_writes_or_removes(key, desk, refused):
    spoilt({key: "payload.py"}, desk)
    assert key in refused("data", "--config", "evil.yaml")
    assert (desk / "payload.py").read_text() == PAYLOAD


@pytest.mark.parametrize("entry", ["payload", "other, payload", "payload.SGD"])
def test_the_users_own_code_runs_where_the_user_vouches_for_it(entry, desk, ltbench, monkeypatch):
    monkeypatch.setenv("LTBENCH_TRUST", entry)
    spoilt({"model": {"init_args": {"optimizer": ANOTHER}}}, desk)
    words = ["fit", "--config", "evil.yaml", "--print_config"]
    assert ltbench(*words).code == 0
    assert (desk / "executed").exists()
    monkeypatch.delenv("LTBENCH_TRUST")
    assert ltbench(*words).code == 2


@pytest.mark.parametrize(
    "name", ["payload.os.system", "payload.borrowed", "payload.torch.hub.load"]
)
@pytest.mark.parametrize("place", ["loss", "optimizer"])
def test_what_it_has_imported_from_others_is_not_its_own(name, place, desk, refused, monkeypatch):
    monkeypatch.setenv("LTBENCH_TRUST", "payload")
    spoilt({"model": {"init_args": {place: name}}}, desk)
    refused("fit", "--config", "evil.yaml")


@pytest.mark.parametrize("value", [{"class_path": "x.Y"}, [torch.zeros(1)], Evil()])
def test_a_network_takes_plain_values(value):
    with pytest.raises(UserError, match="plain values"):
        build_backbone("tiny_net", 10, drop_rate=value)


# --- names and paths in records ---

WRONG = {
    "the folder above": "..",
    "this folder": ".",
    "nothing": "",
    "a path": "a/b",
    "far above": "../../precious",
    "the root": "/",
    "a zero byte": "a\0b",
    "a line break": "a\nb",
    "an escape": "\x1b[2J",
    "a long name": "a" * 10_000,
    "long letters": "ü" * MAX_NAME,
    "half a letter": "a\ud800",
}


@pytest.mark.parametrize("name", WRONG.values(), ids=WRONG)
def test_a_name_that_leads_elsewhere_is_refused(name, desk, ltbench, refused):
    with pytest.raises(UserError):
        records.plain_name(name, "a name")
    for precious in (desk / "precious/file", desk / "runs/precious/config.yaml"):
        precious.parent.mkdir(parents=True)
        precious.write_text("precious")
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    before.pop(desk / "run/record.json")
    change_record(desk / "run", job_id=name)
    refused("bench", "reproduce", "run")
    assert {path: path.read_bytes() for path in before} == before
    assert not (desk / "runs/reproduced").exists()


def test_an_absolute_job_id_removes_nothing(desk, refused):
    change_record(desk / "run", job_id=str(desk / "model"))
    (desk / "model/record.json").write_text((desk / "run/record.json").read_text())
    refused("bench", "reproduce", "run")
    assert (desk / "model/record.json").exists()


@pytest.mark.parametrize("name", ["a-b_c.d+e", "ü", "two words", "a" * MAX_NAME])
def test_other_names_may_stay(name):
    assert records.plain_name(name, "a name") == name


@pytest.mark.parametrize("path", ["/dev/zero", "\ud800", "a" * 10_000, "gone"])
def test_a_lineage_that_leads_elsewhere_is_refused(path, desk, refused):
    change_record(desk / "run", lineage=[{"role": "teacher", "path": path, "job_id": "1"}])
    change_record(desk / "run", config__model__init_args__init_from={"path": path})
    refused("bench", "reproduce", "run")


@pytest.mark.parametrize("name", ["../above", "a/b", "a\nb"])
def test_a_plan_leads_nowhere(name, desk):
    job = {"key": "0" * 16, "name": name, "seed": 0, "config": "x", "overrides": {}}
    plan = {"suite": "mine", "jobs": {"0" * 16: job}, "rows": {}, "families": {}}
    (desk / "mine.json").write_text(json.dumps(plan))
    with pytest.raises(UserError):
        Store(desk).load("mine")


@pytest.fixture
def reproduced(desk, monkeypatch):
    """A reproduction whose training is counted, and ends as it is told."""
    trained = []

    def train(words, env, check):
        place = Path(words[6].partition("=")[2])
        trained.append((place, Path(words[5]).read_text()))
        again = place / "run-0/record.json"
        again.parent.mkdir(exist_ok=True)
        record = json.loads(Path("run/record.json").read_text())
        again.write_text(json.dumps(record | {"status": train.status}))
        return SimpleNamespace(returncode=0 if train.status == "done" else 1)

    train.status, train.trained = "done", trained
    monkeypatch.setattr(reproduce.subprocess, "run", train)
    return train


def test_a_reproduction_has_a_fresh_folder_and_removes_nothing(desk, reproduced):
    job, folder = records.read_record(desk / "run/record.json")["job_id"], Path("again")
    for name in ("1", "2", "3"):  # what a stranger, or the user, has there already
        (folder / f"{job}-{name}").mkdir(parents=True)
        (folder / f"{job}-{name}/record.json").write_text("precious")
    (folder / f"{job}-3/record.json").unlink()
    (folder / f"{job}-3").rmdir()
    (folder / f"{job}-3").symlink_to(desk / "model")
    assert reproduce.reproduce("run", folder)
    assert reproduce.reproduce("run", folder)
    assert [place.name for place, _ in reproduced.trained] == [f"{job}-4", f"{job}-5"]
    assert (folder / f"{job}-1/record.json").read_text() == "precious"
    assert list((desk / "model").iterdir()) == []


def test_a_killed_reproduction_goes_on_in_its_folder(desk, reproduced):
    job, folder = records.read_record(desk / "run/record.json")["job_id"], Path("again")
    (folder / f"{job}-1").mkdir(parents=True)  # killed before its config was written
    for reproduced.status in ("running", "interrupted"):
        with pytest.raises(UserError, match="the run failed"):
            reproduce.reproduce("run", folder)
    reproduced.status = "done"
    assert reproduce.reproduce("run", folder)
    assert {place.name for place, _ in reproduced.trained} == {f"{job}-2"}
    change_record(desk / "run", config__seed_everything=9)  # another run of the same id
    reproduced.status = "running"
    with pytest.raises(UserError, match="the run failed"):
        reproduce.reproduce("run", folder)
    assert reproduced.trained[-1][0].name == f"{job}-3"


def test_a_reproduction_writes_nowhere_else(desk, reproduced, refused):
    outside = lightning("loggers.CSVLogger", save_dir=str(desk / "model"))
    change_record(desk / "run", config__trainer__logger=outside)
    change_record(desk / "run", config__output="payload.py")
    assert reproduce.reproduce("run", Path("again"))
    config = yaml.safe_load(reproduced.trained[-1][1])
    assert set(config) <= {"seed_everything", "trainer", "model", "data", "name"}
    assert not {"logger", "default_root_dir"} & config["trainer"].keys()
    callback = lightning("callbacks.ModelCheckpoint", dirpath=str(desk / "model"))
    change_record(desk / "run", config__trainer__callbacks=[callback])
    assert "callback" in refused("bench", "reproduce", "run")


def test_a_checkpoint_names_no_file_to_remove(tmp_path):
    (tmp_path / "best.ckpt").touch()
    callback = RunCheckpoint(dirpath=tmp_path, filename="best", monitor="x")
    elsewhere = ["/etc/passwd", "../precious", "record.json", "checkpoints/.."]
    paths = ("best_model_path", "kth_best_model_path", "last_model_path")
    state = dict(zip(paths, elsewhere, strict=False)) | {
        "best_k_models": {path: torch.tensor(0.0) for path in elsewhere},
        **{"monitor": "x", "best_model_score": None, "kth_value": torch.tensor(0.0)},
        "current_score": None,
    }
    callback.load_state_dict(state)
    named = {getattr(callback, name) for name in paths} | callback.best_k_models.keys()
    assert {Path(name) for name in named} == {tmp_path / "best.ckpt"}


@pytest.mark.parametrize("place", ["folder", "notes.txt", "folder/../old.ckpt"])
def test_only_checkpoints_are_removed(place, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "old.ckpt"):
        (tmp_path / name).touch()
    writer = WholeCheckpoints(None, None)
    writer.remove_checkpoint(tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "notes.txt", "old.ckpt"}
    writer.remove_checkpoint(tmp_path / "old.ckpt")
    assert not (tmp_path / "old.ckpt").exists()

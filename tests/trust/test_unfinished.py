"""Nothing is silently unfinished: "done" means that the schedule ran to its end, in one process."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import processes
import pytest
import support
import yaml
from compared import only_run
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.accelerators import CPUAccelerator

from ltbench import cli, records
from ltbench.errors import UserError
from ltbench.methods.erm import ERM
from ltbench.runs import training
from ltbench.runs.callbacks.refused import REFUSED
from ltbench.runs.experiment import build

# --- the callbacks that Lightning ships ---

HARMLESS = {  # with the arguments that they need
    **{name: {} for name in ("Callback", "Checkpoint", "LambdaCallback", "ModelCheckpoint")},
    **{name: {} for name in ("ModelSummary", "RichModelSummary")},
    **{name: {} for name in ("WeightAveraging", "EMAWeightAveraging")},
}
BARS = ("ProgressBar", "RichProgressBar", "TQDMProgressBar")
NEEDED = {  # by those that are refused
    "OnExceptionCheckpoint": {"dirpath": "saved"},
    "EarlyStopping": {"monitor": "val/accuracy"},
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ThroughputMonitor": {"batch_size_fn": "torch.numel"},
}


def with_callbacks(tiny, **arguments):
    named = [
        {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": given}
        for name, given in arguments.items()
    ]
    return "fit", "--config", tiny, f"--trainer.callbacks={json.dumps(named)}"


@pytest.mark.parametrize("name", sorted(set(lightnings.__all__) - HARMLESS.keys() - {*BARS}))
def test_a_callback_that_would_falsify_a_result_is_refused(name, refused, tiny, tmp_path):
    said = refused(*with_callbacks(tiny, **{name: NEEDED.get(name, {})}))
    assert len(said.splitlines()) == 1
    assert name in said or name == "ThroughputMonitor"  # whose argument the parser refuses
    assert issubclass(getattr(lightnings, name), tuple(REFUSED))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "names",
    [
        ("Callback", "LambdaCallback", "ModelCheckpoint", "ModelSummary"),
        *(pytest.param([name], marks=pytest.mark.slow) for name in HARMLESS),
    ],
)
def test_any_other_works(names, ltbench, tiny, tmp_path, monkeypatch):
    # It takes functions of anyone's.
    monkeypatch.setenv("LTBENCH_TRUST", "lightning.pytorch.callbacks.lambda_function")
    arguments = {name: HARMLESS[name] for name in names}
    done = ltbench(*with_callbacks(tiny, **arguments), "--trainer.max_epochs", 1)
    assert done.code == 0, done.err
    record = records.read_record(only_run(tmp_path) / "record.json")
    assert (record["status"], record["epochs"], record["steps"]) == ("done", 1, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_a_bar_of_the_users_own_takes_the_place_of_ours(name, ltbench, tiny):
    words = with_callbacks(tiny, **{name: {}})
    done = ltbench(*words, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "true")
    assert done.code == 0, done.err


# --- what ends a training before its schedule ---


def stops_after_an_epoch(self):
    self.trainer.should_stop = True


def stops_in_an_epoch(self, batch, batch_idx):
    self.trainer.should_stop = batch_idx == 2


def leaves_an_epoch(self, batch, batch_idx):
    return -1 if batch_idx == 2 else None


def shortens_the_training(self, *_):
    self.trainer.fit_loop.max_epochs = 1


def changes_the_batch_size(self):
    self.trainer.datamodule.batch_size = 16


@pytest.mark.parametrize(
    ("hook", "what"),
    [
        ("on_train_epoch_end", stops_after_an_epoch),
        ("on_train_batch_start", stops_in_an_epoch),
        ("on_train_batch_start", leaves_an_epoch),
        ("on_train_batch_start", shortens_the_training),
        ("on_fit_start", changes_the_batch_size),
    ],
)
def test_what_ends_a_training_early_is_said(hook, what, ltbench, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ERM, hook, what)
    done = ltbench("fit", "--config", tiny)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) <= 3
    if hook == "on_fit_start":
        assert "batch_size from 32 to 16" in done.err
        return
    record = records.read_record(only_run(tmp_path) / "record.json")
    assert record["status"] == "failed"
    assert "before its schedule" in record["cause"]
    assert record["metrics"] == {}


@pytest.mark.parametrize("limit", ["max_steps", "min_steps"])
def test_a_length_in_steps_is_refused(limit, refused, tiny):
    assert limit in refused("fit", "--config", tiny, f"--trainer.{limit}", 3)


# --- signals ---


def of_workers(tmp_path, epochs):
    """The config of a training whose images come from a worker."""
    support.write_images(tmp_path / "images/train", {"ant": 20, "bee": 9, "cat": 3})
    support.write_images(tmp_path / "images/test", {"ant": 4, "bee": 4, "cat": 5}, seed=1)
    whole = yaml.safe_load(support.TINY)
    whole["trainer"]["max_epochs"] = epochs
    whole["data"]["init_args"] = {
        **{"source": "folder", "root": str(tmp_path / "images"), "profile": "natural"},
        **{"batch_size": 8, "num_workers": 1, "decoding": {"random_crop": [0.5, 1.0]}},
    }
    path = tmp_path / "workers.yaml"
    path.write_text(yaml.safe_dump(whole))
    return ["fit", "--config", path]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGUSR1, signal.SIGINT)),
    ],
)
def test_a_run_and_its_workers_that_are_asked_to_end_are_interrupted(number, tmp_path):
    words = of_workers(tmp_path, 3)
    done = processes.run(words, tmp_path, ("step", 6, number, True))
    assert done.code == 128 + number, done.err
    assert "a worker" not in done.err
    assert records.read_record(only_run(tmp_path) / "record.json")["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_end_with_more_workers(tmp_path):
    words = of_workers(tmp_path, 3)
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    assert processes.run(words, calm).code == 0
    assert processes.run(words, rough, ("step", 6)).code == -signal.SIGKILL
    assert processes.run([*words, "--data.num_workers", "2"], rough).code == 0
    one, other = (records.read_record(only_run(home) / "record.json") for home in (calm, rough))
    assert one["metrics"] == other["metrics"]
    assert one["job_id"] == other["job_id"]


class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.01)


def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@cli._stoppable()
def end_within_a_finalizer():
    Finalized()
    wait(10)


def test_a_signal_within_a_finalizer_is_not_lost():
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        end_within_a_finalizer()


@cli._stoppable()
def end_slowly(monkeypatch):
    try:
        signal.raise_signal(signal.SIGTERM)
        wait(1)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGUSR1)
        wait(0.1)
        monkeypatch.setattr(cli, "PATIENCE", 0)
        signal.raise_signal(signal.SIGTERM)
        wait(1)


def test_a_second_signal_does_not_disturb_the_end_unless_it_takes_long(monkeypatch):
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        end_slowly(monkeypatch)


# --- one process a run ---

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
)


def test_a_run_is_trained_by_one_process_at_a_time(ltbench, refused, tiny, tmp_path):
    folder = build(str(tiny)).folder
    (tmp_path / folder).mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / folder / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    for more in ([], ["--fresh", "true"]):
        assert str(folder) in refused("fit", "--config", tiny, *more)
    holder.communicate(b"\n")
    done = ltbench("fit", "--config", tiny)
    assert done.code == 0, done.err
    assert not list(tmp_path.rglob("lock"))


@pytest.mark.parametrize("kind", ["symlink", "link", "pipe", "folder"])
def test_a_lock_that_someone_else_made_is_not_written_through(kind, tmp_path):
    victim, lock = tmp_path / "victim", tmp_path / "run/lock"
    victim.write_text("mine")
    lock.parent.mkdir()
    if kind == "symlink":
        lock.symlink_to(victim)
    elif kind == "link":
        lock.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(UserError, match="lock"), records.locked(lock):
        pass
    assert victim.read_text() == "mine"


def test_a_finished_run_needs_no_lock(ltbench, tiny, tmp_path, monkeypatch):
    ltbench("fit", "--config", tiny, "--trainer.max_epochs", 1)
    monkeypatch.setattr(records, "locked", None)  # as in a folder that may only be read
    again = ltbench("fit", "--config", tiny, "--trainer.max_epochs", 1)
    assert again.code == 0
    assert "done already" in again.out


def test_devices_that_auto_stands_for_are_part_of_a_run(tiny, monkeypatch):
    def job_id(**settings):
        return build(str(tiny), {f"trainer.{k}": v for k, v in settings.items()}).job_id

    given = job_id(accelerator="cpu", devices=1)
    assert job_id(accelerator="cpu", devices="auto") == given
    assert job_id(accelerator="cpu", devices=-1) == given
    monkeypatch.setattr(CPUAccelerator, "auto_device_count", staticmethod(lambda: 4))
    assert job_id(accelerator="cpu", devices="auto") == job_id(accelerator="cpu", devices=4)
    assert job_id(accelerator="cpu", devices="auto") != given


# --- a process of several ends ---


def test_the_death_of_another_rank_is_told_in_a_line(ltbench, tiny, monkeypatch):
    def closed(self):
        raise RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(training.Training, "run", closed)
    done = ltbench("fit", "--config", tiny)
    assert done.code == 1
    (said,) = done.err.splitlines()
    assert said.startswith("error: another process of this training has ended")


@pytest.mark.slow
@pytest.mark.ddp
def test_a_killed_rank_ends_the_others(tmp_path):
    (tmp_path / "tiny.yaml").write_text(support.TINY)
    words = ["fit", "--config", tmp_path / "tiny.yaml", "--trainer.max_epochs", 500]
    first, second = processes.run_ranks(words, tmp_path, 2, ("step", 20), only=1)
    assert second.code == -signal.SIGKILL
    assert first.code == 1
    said = [line for line in first.err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1, first.err
    record = records.read_record(only_run(tmp_path) / "record.json")
    assert record["status"] == "failed"
    assert record["cause"].startswith("another process of this training has ended")


@pytest.mark.slow
@pytest.mark.ddp
def test_a_test_set_without_a_class_is_measured_alike_on_two_devices(tmp_path):
    root = tmp_path / "images"
    support.write_images(root / "train", {"ant": 20, "bee": 9, "cat": 3})
    support.write_images(root / "test", {"ant": 4, "cat": 3}, seed=1)
    whole = yaml.safe_load(support.TINY)
    data = {"source": "folder", "root": str(root), "profile": "natural", "eval_batch_size": 2}
    whole["data"]["init_args"] = data | {"batch_size": 8}
    (tmp_path / "folder.yaml").write_text(yaml.safe_dump(whole))
    config = tmp_path / "folder.yaml"
    done = processes.run(["fit", "--config", config, "--trainer.max_epochs", 1], tmp_path)
    assert done.code == 0, done.err
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    words = ["test", "--config", config, "--ckpt_path", last]
    alone, (first, _) = processes.run(words, tmp_path), processes.run_ranks(words, tmp_path, 2)
    assert (alone.code, first.code) == (0, 0), first.err
    assert support.columns(first.out) == support.columns(alone.out)


# --- memory ---


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [600, 900, 1200])
def test_memory_may_be_short(megabytes, tmp_path):
    """Wherever it runs out there is no traceback of ours, and no record that says "done"."""
    (tmp_path / "tiny.yaml").write_text(support.TINY.replace("tiny_net", "resnet32_cifar"))
    done = subprocess.run(
        [sys.executable, "-m", "ltbench", "fit", "--config", "tiny.yaml", "--data.batch_size=512"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20,) * 2),
    )
    for path in tmp_path.glob("runs/*/record.json"):
        assert (records.read_record(path)["status"] == "done") == (done.returncode == 0)
    assert done.returncode == 0 or "Traceback" not in done.stderr, done.stderr[-2000:]

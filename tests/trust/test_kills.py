"""A run that is killed, at any moment, ends as one that was never disturbed, to the last bit."""

import importlib
import random
import signal
from pathlib import Path

import processes
import pytest
from compared import assert_same_run, only_run

from ltbench.metrics.catalogue import metrics_from_counts
from ltbench.records import read_record

REPOSITORY = Path(__file__).parents[2]


def kill_often(words, home, moments):
    """Kill a command at one moment after the other, then let it end; return the kills."""
    kills = 0
    for moment in moments:
        done = processes.run(words, home, moment)
        assert done.code in (-signal.SIGKILL, -signal.SIGPROF, 0), done.err
        kills += done.code != 0
    done = processes.run(words, home)
    assert done.code == 0, done.err
    assert not list(home.rglob("*.part"))
    return kills


def test_killed_three_times(digits_run, tmp_path):
    """Between two steps' halves, while a checkpoint is half written, and in an evaluation."""
    moments = [("last.ckpt", 2), ("step", 9), ("evaluation", 3)]
    assert kill_often(["fit", "--config", digits_run.config], tmp_path, moments) == 3
    assert_same_run(digits_run.folder, only_run(tmp_path))


@pytest.mark.slow
def test_every_method_killed_at_random_moments(method, of_method, tmp_path):
    words = ["fit", "--config", of_method(method, epochs=10)]
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    done = processes.run(words, calm)
    assert done.code == 0, done.err
    draw = random.Random(method)
    moments = [
        *(("step", draw.randint(1, 8)) for _ in range(3)),
        *(("evaluation", draw.randint(1, 10)) for _ in range(2)),
        *((name, draw.randint(1, 2)) for name in ("last.ckpt", "record.json", "metrics.csv")),
        *(("time", draw.uniform(0.1, 0.8)) for _ in range(3)),
    ]
    draw.shuffle(moments)
    moments.append(("predictions_last.npz" if method != "cbgan" else "record.json", 1))
    kills = kill_often(words, rough, moments)
    print(f"{method}: {kills} kills in {len(moments)} attempts")
    assert kills >= (4 if method == "taunorm" else 8)  # which has no steps to be killed in
    assert_same_run(only_run(calm), only_run(rough))


@pytest.mark.slow
def test_a_teacher_and_a_student_on_a_miniature_of_inaturalist(tmp_path, monkeypatch):
    """Official layout, shipped configs, decoding workers; the student is killed twice."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    tree = ["--output", str(tmp_path / "tree"), "--classes", "210", "--largest", "12"]
    importlib.import_module("mini_inat").main([*tree, "--side", "40"])
    small = {
        **{"data.root": tmp_path / "tree", "data.image_size": 16, "data.decoding.resize": 18},
        **{"data.num_workers": 1, "data.batch_size": 64, "trainer.max_epochs": 3},
        **{"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"},
        # Of both, so that the student finds the teacher's own numbers.
        **{"trainer.precision": "32-true", "data.decoding.interpolation": "bicubic"},
    }

    def fit(config, **options):
        given = small | {key.replace("__", "."): value for key, value in options.items()}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        return ["fit", "--config", REPOSITORY / f"configs/{config}.yaml", *words]

    homes = [tmp_path / name for name in ("teacher", "calm", "rough")]
    for home in homes:
        home.mkdir()
    done = processes.run(fit("ldamdrwsam_inat", model__backbone="tiny_net"), homes[0])
    assert done.code == 0, done.err
    teacher = only_run(homes[0])
    size = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}"
    student = fit(
        "deitlt_inat",
        model__backbone="deit_tiny_distilled_patch4_32",
        model__backbone_args=size,
        model__micro_batch=32,
        model__teacher__path=teacher,
        model__reweighting__start=0.67,
    )
    done = processes.run(student, homes[1])
    assert done.code == 0, done.err
    assert "Teacher on test, %: accuracy" in done.out
    assert kill_often(student, homes[2], [("step", 13), ("last.ckpt", 1)]) == 2
    assert_same_run(only_run(homes[1]), only_run(homes[2]))

    record = read_record(only_run(homes[2]) / "record.json")
    counts = record["data"]["class_counts"]
    assert (len(counts), max(counts), min(counts)) == (210, 12, 2)
    assert record["data"]["images"] == {"train": sum(counts), "test": 3 * 210}
    assert record["images_seen"] == 3 * (sum(counts) // 256 * 256)
    (lineage,) = record["lineage"]
    theirs = read_record(teacher / "record.json")
    own = theirs["metrics"]["last"]["test"]
    assert lineage["metrics"]["test"] == pytest.approx(
        {name: value for name, value in own.items() if name != "per_class_recall"}
    )
    metrics = record["metrics"]["last"]["test"]
    for name in (*metrics_from_counts([1], [1], [1]), "ece"):
        assert {name, f"cls/{name}", f"dist/{name}"} <= metrics.keys()

    last = only_run(homes[2]) / "checkpoints/last.ckpt"
    config = only_run(homes[2]) / "config.yaml"
    done = processes.run(["test", "--config", config, "--ckpt_path", last], homes[2])
    assert done.code == 0, done.err
    assert f"{100 * metrics['dist/accuracy']:.1f}" in done.out


# --- signals that ask a run to end ---

SLURM = {
    "NTASKS": "1",
    "JOB_ID": "7",
    "JOB_NAME": "x",
    "PROCID": "0",
    "LOCALID": "0",
    "NODEID": "0",
}


def assert_left_cleanly(done, home, number):
    """One line, a code that names the signal, and a record that says what happened."""
    assert done.code == 128 + number, done.err
    *warnings, told = done.err.splitlines()
    assert told.startswith("interrupted;")
    assert all(line.startswith("warning: ") for line in warnings)
    record = read_record(only_run(home) / "record.json")
    assert (record["status"], record["cause"]) == (
        "interrupted",
        f"KeyboardInterrupt: {signal.Signals(number).name}",
    )


@pytest.mark.parametrize(
    ("number", "moment", "slurm"),
    [
        (signal.SIGTERM, ("step", 9), {}),
        pytest.param(signal.SIGTERM, ("last.ckpt", 2), {}, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ("predictions_best.npz", 1), {}, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ("evaluation", 9), SLURM, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, ("step", 9), SLURM, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_asked_to_end_does_so_at_once(number, moment, slurm, digits_run, tmp_path):
    """As Slurm asks, in a job of its own or not; what is half written then is not kept."""
    words = ["fit", "--config", digits_run.config]
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    done = processes.run(words, tmp_path, (*moment, number), **environment)
    assert_left_cleanly(done, tmp_path, number)
    assert not [*tmp_path.rglob("*.part"), *tmp_path.rglob("hpc_*")]
    done = processes.run(words, tmp_path, **environment)
    assert done.code == 0, done.err
    assert_same_run(digits_run.folder, only_run(tmp_path))

"""A run that is killed, at any moment, ends as one that was never disturbed, to the last bit."""

import random
import signal

import processes
import pytest
from compared import assert_same_run, only_run

from ltbench.records import read_record


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
    assert kills >= 8
    assert_same_run(only_run(calm), only_run(rough))


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
    assert told == "interrupted; the same command goes on from the last checkpoint."
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

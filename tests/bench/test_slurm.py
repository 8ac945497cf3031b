"""A job on a node that Slurm takes back; ``test_real_runs`` has the whole way round."""

import os
import signal
import sys
import threading

import pytest

from ltbench.bench.run import jobs, slurm

pytest.importorskip("submitit")


class HandedBack(Exception):
    """Ends a job as submitit does once the work is queued again."""


@pytest.fixture
def preempted(monkeypatch):
    """Have submitit's signal hand a job's work back, after some seconds."""

    def after(seconds, work):
        def hand_back(*_):
            raise HandedBack(work.checkpoint())

        before = signal.signal(signal.SIGUSR2, hand_back)
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR2))
        timer.start()
        with pytest.raises(HandedBack) as result:
            work()
        timer.join()
        work.process.wait()
        signal.signal(signal.SIGUSR2, before)
        return result.value.args[0]

    return after


def test_a_job_that_is_pre_empted_ends_and_hands_its_work_back(tmp_path, preempted):
    work = slurm.Work(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])
    handed = preempted(0.5, work)
    assert handed.function.words == work.words
    assert not jobs.is_locked(tmp_path)
    state = jobs.read_state(tmp_path)
    assert state.status == "stopped"
    assert state.notes["seconds"] > 0


def test_a_training_that_slurm_ended_first_waits_to_be_handed_back(tmp_path, preempted):
    """Slurm sends SIGTERM to all processes of a job: the training's end is no result of it."""
    ended = [sys.executable, "-c", "import sys; sys.exit(143)"]
    preempted(1.5, slurm.Work(tmp_path, ended))
    assert jobs.read_state(tmp_path).status == "stopped"

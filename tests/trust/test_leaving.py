"""The program leaves in one line where nobody takes its output, or where memory runs out."""

import os
import subprocess
import sys

import pytest
import torch

from ltbench.runs import training


def run(*words, **options):
    program = [sys.executable, "-m", "ltbench", *words]
    options = {"stdout": subprocess.PIPE} | options
    return subprocess.run(program, stderr=subprocess.PIPE, text=True, check=False, **options)


def test_the_reader_of_its_output_may_leave():
    reading, writing = os.pipe()
    os.close(reading)
    done = run("list", stdout=writing)
    os.close(writing)
    assert done.returncode  # 1 where rich finds it first
    assert done.stderr == ""


def test_its_output_may_find_the_disk_full():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = run("list", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full")
    assert len(done.stderr.splitlines()) == 1


def test_its_output_may_be_closed():
    done = run("list", stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_letters_that_its_output_lacks_are_written_otherwise(tmp_path):
    (tmp_path / "bär.yaml").write_text("# Für Bären.\n", encoding="utf-8")
    shown = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = run("show", "bär.yaml", cwd=tmp_path, env=shown)
    assert done.returncode == 0, done.stderr
    assert "B\\xe4ren" in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_is_told(error, ltbench, tiny, monkeypatch):
    def run_out(*args, **kwargs):
        raise error

    monkeypatch.setattr(training.Training, "run", run_out)
    done = ltbench("fit", "--config", tiny)
    assert done.code == 1
    (told,) = done.err.splitlines()
    assert told.startswith("error: memory ran out")
    assert "set a smaller data.batch_size" in told

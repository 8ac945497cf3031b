"""Commands that only read a run, killed or without room on the disk: what they wrote is whole."""

import errno
import io
import json
import os
import shutil
import signal
from pathlib import Path

import processes
import pytest

from ltbench.bench.run.jobs import Store
from ltbench.bench.run.suite import Job, Plan

COMMANDS = {  # and a file that each of them writes
    "report": ("leaderboard store --output report.html", "report.html"),
    "leaderboard": ("leaderboard store --output table.csv", "table.csv"),
    "export": ("bench export mine --folder store --to made", "record.json"),
    "predictions": ("bench export mine --folder store --to made", "predictions_last.npz"),
    "analysis": ("analyze confusion --run {run} --output made --device cpu", "confusion.json"),
    "picture": ("analyze confusion --run {run} --output made --device cpu", "confusion.png"),
}


@pytest.fixture
def words(digits_run, tmp_path):
    """A working folder with a store of one finished job; returns the words of a command."""
    job = Job("0" * 16, "tiny", 0, "tiny.yaml", {})
    store = Store(tmp_path / "store")
    run = store.job_folder(job) / "tiny-0"
    shutil.copytree(digits_run.folder, run, ignore=shutil.ignore_patterns("events*"))
    store.save(Plan("mine", {job.key: job}, {"tiny": {0: [job.key]}}, {"tiny": "erm"}))
    return lambda command: COMMANDS[command][0].format(run=run.relative_to(tmp_path)).split()


def written(home):
    """Return the content of all files that a command wrote, but for where they were copied."""
    files = [path for path in home.rglob("*") if path.is_file() and "store" not in path.parts]
    names = {path.relative_to(home): path for path in files if path.suffix != ".part"}
    return {name: path.read_bytes() for name, path in names.items() if name.name not in OUTPUTS}


OUTPUTS = {"out", "err"}  # of the processes themselves


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_told_and_what_was_there_stays(
    command, words, ltbench, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    name, original = COMMANDS[command][1], Path.open
    assert ltbench(*words(command)).code == 0
    before = written(tmp_path)

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_(self, mode="r", *args, **options):
        if self.name.startswith(f".{name}.") and self.name.endswith(".part"):
            self.touch()
            return Full()
        return original(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        done = ltbench(*words(command))
    assert done.code == 1
    assert "disk is full while writing" in done.err
    assert name in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("*.part"))
    kept = written(tmp_path)
    assert all(before[path] == content for path, content in kept.items())
    assert ltbench(*words(command)).code == 0
    assert written(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_while_it_writes_it_ends_the_same_when_run_again(command, words, tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for home in (calm, rough):
        home.mkdir()
        shutil.copytree(tmp_path / "store", home / "store")
    assert processes.run(words(command), calm).code == 0
    for moment in ((COMMANDS[command][1], 1), ("time", 0.3), ("time", 1.0)):
        done = processes.run(words(command), rough, moment)
        assert done.code in (-signal.SIGKILL, -signal.SIGPROF, 0), done.err
        for path in written(rough):
            if path.suffix == ".json":
                json.loads((rough / path).read_text())
    assert processes.run(words(command), rough).code == 0
    assert written(rough) == written(calm)

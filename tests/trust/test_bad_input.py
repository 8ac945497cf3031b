"""A corpus of malformed input, driven through the command line: each is refused, and told why.

Every case ends with code 2 and a few lines that name the cause and the place; nothing is left
behind, and nothing that was there has changed.
"""

import os
import shutil
import subprocess
import sys

import bad_analyses
import bad_configs
import bad_data
import bad_files
import bad_suites
import pytest
from bad_case import fill

CASES = {
    name: case
    for part in (bad_analyses, bad_configs, bad_data, bad_files, bad_suites)
    for name, case in part.CASES.items()
}


@pytest.fixture(scope="session")
def pattern(tmp_path_factory, digits_run):
    """The working folder that every case starts from."""
    folder = tmp_path_factory.mktemp("bad_input") / "desk"
    folder.mkdir()
    fill(folder, digits_run.folder)
    return folder


@pytest.fixture
def desk(pattern, tmp_path):
    """A copy of it."""
    return shutil.copytree(pattern, tmp_path / "desk", symlinks=True)


def contents(folder):
    """Path -> bytes of every file below a folder, None for a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_corpus_is_large_and_reaches_every_command():
    assert len(CASES) >= 100
    words = [case.words for case in CASES.values()]
    commands = {word[0] for word in words} | {tuple(word[:2]) for word in words}
    assert commands >= {"fit", "validate", "test", "predict", "list", "show", "data", "analyze"}
    assert commands >= {"leaderboard", *(("bench", a) for a in ("run", "status", "reproduce"))}


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.filterwarnings(r"ignore:\s*Unable to serialize instance")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(name, desk, ltbench, monkeypatch):
    case = CASES[name]
    case.put(desk)
    for variable, value in case.environment.items():
        monkeypatch.setenv(variable, value)
    before = contents(desk)
    done = ltbench(*case.words, cwd=desk)
    check(done.code, done.out, done.err, case.says)
    assert contents(desk) == before


def check(code, out, err, says):
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 6
    assert "Traceback" not in err
    assert [words for words in says if words not in err] == []


@pytest.mark.parametrize(
    "name",
    ["config file: latin1", "folder: an empty class", "analyze: record cut off", "bench: a cycle"],
)
def test_the_program_refuses_it_too(name, desk):
    case = CASES[name]
    case.put(desk)
    before = contents(desk)
    done = subprocess.run(
        [sys.executable, "-m", "ltbench", *case.words],
        cwd=desk,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    check(done.returncode, done.stdout, done.stderr, case.says)
    assert contents(desk) == before

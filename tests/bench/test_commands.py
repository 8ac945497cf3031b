"""``ltbench bench`` and ``ltbench leaderboard`` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support import change_record

from ltbench.bench.run import reproduce
from ltbench.bench.run.command import overrides
from ltbench.errors import UserError


def test_the_status_of_a_suite_is_told_without_torch(workshop, ltbench):
    path = workshop({"good": {"config": 2}, "bad": {"config": {"epochs": 1, "fail": True}}})
    ltbench("bench", "run", path)
    code = "import sys; from ltbench.cli import main; main(['bench', 'status', 'mine'])"
    code += "; assert not {'torch', 'numpy', 'scipy', 'jinja2'} & sys.modules.keys()"
    done = subprocess.run(  # -P: not the stand-in of the working folder
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 done, 1 failed" in done.stdout
    assert "bad seed 0: it was asked to fail." in done.stdout


def test_a_leaderboard_needs_no_torch(make_run, tmp_path):
    make_run("ce", 0, logits=True)
    code = "import sys; from ltbench.cli import main; main(['leaderboard', 'runs', '--format', "
    code += "'html', '--output', 'x.html']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_a_leaderboard_of_a_suite_names_what_is_not_done(workshop, ltbench):
    path = workshop({"good": {"config": 2}, "bad": {"config": {"epochs": 1, "fail": True}}})
    ltbench("bench", "run", path)
    content = json.loads(ltbench("leaderboard", "mine", "--format", "json").out)
    assert [line["row"] for line in content["tables"][0]["lines"]] == ["good"]
    assert content["problems"] == ["bad, seed 0 is failed: it was asked to fail."]


def test_an_exported_suite_has_the_same_leaderboard_and_names_no_place_of_this_machine(
    workshop, ltbench, tmp_path
):
    path = workshop({"one": {"config": 2}, "bad": {"config": {"epochs": 1, "fail": True}}})
    ltbench("bench", "run", path, "--data.root", tmp_path / "elsewhere" / "My images")
    run = next(Path("runs/bench").glob("one-seed0-*/one-0"))
    record = json.loads((run / "record.json").read_text())
    record["config"]["trainer"]["default_root_dir"] = str(run.parent.absolute())
    (run / "record.json").write_text(json.dumps(record))
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    done = ltbench("bench", "export", "mine", "--to", "published")
    assert done.out == "1 jobs: ltbench leaderboard mine --folder published\n"
    original, copied = (
        ltbench("leaderboard", "mine", "--format", "csv", "--folder", folder).out
        for folder in ("runs/bench", "published")
    )
    assert copied.replace("published", "runs/bench") == original
    files = [path for path in Path("published").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".ckpt"]
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]
    assert '"data.root": "My images"' in Path("published/mine.json").read_text()


def test_an_export_of_other_rows_and_seeds_adds_to_the_earlier_one(workshop, ltbench):
    """As sittings do that run a suite part by part."""
    rows = {"one": {"config": 2}, "other": {"config": 3}, "start": {"config": 4}}
    path = workshop(rows)
    for row, seed in (("one", 0), ("other", 0), ("one", 1)):
        ltbench("bench", "run", path, "--rows", row, "--seeds", seed)
        ltbench("bench", "export", "mine", "--to", "published")
    published = json.loads(Path("published/mine.json").read_text())
    assert {name: list(seeds) for name, seeds in published["rows"].items()} == {
        "one": ["0", "1"],
        "other": ["0"],
    }
    assert len(published["jobs"]) == 3
    workshop({**rows, "one": {"config": 5}})
    ltbench("bench", "run", path, "--rows", "one", "--seeds", 0)
    ltbench("bench", "export", "mine", "--to", "published")
    again = json.loads(Path("published/mine.json").read_text())
    assert len(again["jobs"]) == 3
    assert again["rows"]["one"]["0"] != published["rows"]["one"]["0"]
    assert again["rows"]["one"]["1"] == published["rows"]["one"]["1"]


def test_arguments_that_are_not_the_runners_go_to_every_stage(workshop, ltbench):
    path = workshop({"a": {"config": 2}, "b": {"config": {"epochs": 3, "term": 2}}})
    done = ltbench("bench", "run", path, "--trainer.max_epochs", "1", "--seeds", "4,5")
    assert done.code == 0, done.err
    lines = Path("epochs.log").read_text().splitlines()
    assert sorted(line.split()[:3] for line in lines) == [
        *(["a", "4", "1"], ["a", "5", "1"], ["b", "4", "1"], ["b", "5", "1"])
    ]


def test_values_on_the_command_line_are_read_as_in_a_config():
    words = ["--a", "1e-3", "--b=null", "--c", "[1, x]", "--d.root", "my images", "--e=-1"]
    assert overrides(words) == {
        "a": "1e-3",
        "b": None,
        "c": [1, "x"],
        "d.root": "my images",
        "e": -1,
    }


@pytest.mark.parametrize("words", [["a"], ["--a"], ["--a", "1", "b"]])
def test_what_is_not_a_pair_is_refused(words):
    with pytest.raises(UserError, match="--NAME VALUE"):
        overrides(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "runn"], "Did you mean 'run'"),
        (["bench", "status", "smoke"], "ltbench bench run smoke"),
        (["leaderboard", "smoke"], "ltbench bench run smoke"),
        (["leaderboard", "."], "record.json"),
        (["bench", "run", "smoke", "--launcher", "slurm"], "srun"),
        (["bench", "reproduce", "abc"], "no job"),
    ],
)
def test_mistakes_are_named(words, message, refused):
    assert message in refused(*words)


def test_help_names_the_actions(ltbench):
    assert "run|status|export|reproduce" in ltbench("bench").out
    assert "--only-failed" in ltbench("bench", "run", "--help").out


def test_a_job_is_found_by_the_start_of_its_id(make_run, tmp_path, monkeypatch):
    folder = make_run("ce", 0)
    make_run("ce", 1)
    monkeypatch.chdir(tmp_path)
    expected = folder.relative_to(tmp_path) / "record.json"
    make_run("ce", 0, folder=tmp_path / "runs/reproduced/ce-0/ce-0")
    again = Path("runs/reproduced")
    assert reproduce.find("ce-0", again) == expected
    assert reproduce.find(str(folder), again) == folder / "record.json"
    with pytest.raises(UserError, match="several jobs"):
        reproduce.find("ce-", again)


def test_a_job_that_starts_from_a_run_that_is_gone_says_so(make_run, tmp_path):
    lineage = [{"role": "teacher", "path": "gone/checkpoints/last.ckpt", "job_id": "123"}]
    folder = make_run("ce", 0, lineage=lineage)
    with pytest.raises(UserError, match=r"gone/checkpoints/last\.ckpt \(job 123\)"):
        reproduce.reproduce(str(folder), tmp_path / "again")


@pytest.mark.parametrize("revised", [{}, {"PaCo": 1}])
def test_a_job_of_an_older_recipe_names_its_class_and_the_commit(revised, make_run, tmp_path):
    folder = make_run("paco", 0)
    git = {"commit": "0123abcd", "dirty": False}
    change_record(folder, config__model__class_path="PaCo", git=git, revisions=revised)
    with pytest.raises(UserError, match=r"PaCo.*0123abcd"):
        reproduce.reproduce(str(folder), tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "tolerance", "agree", "message"),
    [
        (0, 0, True, "the same to the last digit"),
        (0.001, 0, False, "differ, by at most 0.001"),
        (0.001, 0.01, True, "agree within the tolerance, by at most 0.001"),
        (None, 1, False, "by at most inf"),
    ],
)
def test_metrics_are_compared_one_by_one(change, tolerance, agree, message):
    metrics = {"last": {"test": {"accuracy": 0.5, "per_class_recall": [0.25, 0.75]}}}
    again = json.loads(json.dumps(metrics))
    if change is None:
        again["last"]["test"]["per_class_recall"].pop()
    else:
        again["last"]["test"]["accuracy"] += change
    console = Console(record=True, width=100, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        before = {"metrics": metrics, "device": "one"}
        after = {"metrics": again, "device": "another"}
        assert reproduce.compare(before, after, tolerance, console) is agree
    text = console.export_text()
    assert message in text
    assert ("device: one then, another now." in text) == (change != 0)

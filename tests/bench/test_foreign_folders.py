"""A folder that others write to: whatever lies in it costs at most its own row, and is told."""

import csv
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support import SUPPORT, change_record

from ltbench.bench.score import leaderboard, results
from ltbench.bench.show import report, tables, terminal
from ltbench.records import read_npz
from ltbench.untrusted import MOST_TEXT

SECRET = b"\x89PNG\r\n\x1a\nbegin private key"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def changed(**values):
    return lambda path: change_record(path.parent, **values)


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def text(content):
    return lambda path: path.write_text(content)


def nested(levels):
    return text("[" * levels + "]" * levels)


def npz(**arrays):
    return lambda path: np.savez_compressed(path, **arrays)


def header(path, shape, kind="<i8", content=b""):
    """Write arrays that claim a shape, whatever follows."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("index", "label", "prediction"):
            out = io.BytesIO()
            claim = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, claim)
            archive.writestr(f"{name}.npy", out.getvalue() + content)


ROWS = 3 * SUPPORT  # test images of the made-up runs
OF_RECORD = {
    "fifo": fifo,
    "device": device,
    "deep": nested(100_000),
    "less deep": nested(400),
    "a number of 400 digits": changed(steps=10**400),
    "a number of 20,000 digits": lambda path: path.write_text(
        path.read_text().replace('"seed": 0', '"seed": ' + "9" * 20_000)
    ),
    "large": lambda path: os.truncate(path, MOST_TEXT + 1),
    "a count of text": changed(data__class_counts=["a", "b", "c"]),
    "a negative count": changed(data__class_counts=[-1, 2, 3]),
    "counts of 25 digits": changed(data__class_counts=[10**25, 2, 3]),
    "unlabelled images of text": changed(data__unlabelled_counts=["x"]),
    "a huge metric": changed(metrics__last__test__accuracy=1e308),
    "a metric of text": changed(metrics__last__test__accuracy="0.9"),
    "seconds of text": changed(wall_seconds="long"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" * 10),
}
OF_CONFIG = {  # which is free: it stays a row, laid out all the same
    "mixup of text": changed(config__model={"init_args": {"mixup": "much", "backbone": ["a"]}}),
    "backbone arguments of text": changed(
        config__model={"init_args": {"backbone": "r", "backbone_args": "x"}}
    ),
    "transforms of numbers": changed(
        config__data={"init_args": {"augment": [{"class_path": 1, "init_args": 2}, 3, None]}}
    ),
}
OF_PREDICTIONS = {
    "fifo": fifo,
    "device": device,
    "text": text("PK"),
    "a shape of terabytes": lambda path: header(path, (10**12,)),
    "a negative shape": lambda path: header(path, (-1, -1), content=bytes(8)),
    "a bomb": lambda path: header(path, (2**25,), content=bytes(2**28)),
    "objects": lambda path: header(path, (ROWS,), "|O", pickle.dumps([1])),
    "a matrix": npz(**dict.fromkeys(("index", "label", "prediction"), np.zeros((ROWS, 2), int))),
    "texts": npz(**dict.fromkeys(("index", "label", "prediction"), np.full(ROWS, "a"))),
    "labels below 0": npz(index=np.arange(ROWS), label=-np.ones(ROWS, int), prediction=np.ones(1)),
}
OF_LOGITS = {
    "nan": np.nan,
    "infinite": np.inf,
}
OF_CURVES = {
    "fifo": fifo,
    "epoch -1": text("epoch,val/accuracy\n-1,0.5\n"),
    "epochs of text": text("epoch,val/accuracy\na,b\n1e999,nan\nnan,1\n0,1e999\n"),
    "a NUL": text("epoch,val/accuracy\n0,\0\n"),
    "one long field": text("epoch,val/accuracy\n0," + "1" * 300_000),
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
}
OF_CORRECTIONS = {
    "fifo": fifo,
    "text for a number": text(json.dumps({n: {} for n in ("accuracy", "ece")} | {"ece": "x"})),
    "texts": text('{"ece": {"temperature": {"value": "a", "constant": []}}}'),
    "a list": text("[]"),
}
OF_ANALYSIS = {
    "fifo": fifo,
    "deep": nested(100_000),
    "a number": text("3"),
    "figures of numbers": text('{"title": 1, "summary": [], "figures": [1], "tables": []}'),
    "rows of one": text('{"title": "a", "summary": [["x"]], "figures": [], "tables": []}'),
    "a long name": text(
        json.dumps({"title": "a", "summary": [], "figures": ["x" * 5000], "tables": []})
    ),
    "a name with NUL": text(
        json.dumps({"title": "a", "summary": [], "figures": ["a\0b", ".."], "tables": []})
    ),
}


def page(folder):
    """Return every form of the leaderboard of a folder, and what it could not use."""
    board = leaderboard.build(results.of_folder(folder))
    html = report.html(board, [])
    tables.markdown(board, [])
    tables.as_csv(board)
    tables.as_json(board, [])
    terminal.render(board, [])
    return board, html


KINDS = {
    "record.json": OF_RECORD,
    "predictions_last.npz": OF_PREDICTIONS,
    "metrics.csv": OF_CURVES,
    "corrected_last.json": OF_CORRECTIONS,
    "analysis/rank.json": OF_ANALYSIS,
}
UNTOLD = {  # is made again, or is nothing to tell
    *(("corrected_last.json", name) for name in OF_CORRECTIONS),
    *(("metrics.csv", name) for name in ("epoch -1", "epochs of text", "a NUL")),
    *(("analysis/rank.json", name) for name in ("figures of numbers",)),
}


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, kind in KINDS.items() for name in kind]
)
def test_a_bad_file_costs_at_most_its_row(file, name, make_run, tmp_path):
    make_run("good", logits=True)
    bad = make_run("bad", logits=True)
    (bad / file).parent.mkdir(exist_ok=True)
    KINDS[file][name](bad / file)
    board, html = page(tmp_path / "runs")
    rows = {line.name for table in board.tables for line in table.lines}
    assert rows == ({"good"} if file == "record.json" else {"good", "bad"})
    if (file, name) not in UNTOLD:
        assert str((bad / file).parent if "name" in name else bad / file) in html


@pytest.mark.parametrize("name", OF_CONFIG)
def test_a_strange_config_is_laid_out(name, make_run, tmp_path):
    make_run("good")
    OF_CONFIG[name](make_run("bad") / "record.json")
    board, _ = page(tmp_path / "runs")
    assert not board.problems


@pytest.mark.parametrize("value", OF_LOGITS.values())
def test_logits_that_are_not_finite_are_told(value, make_run, tmp_path):
    bad = make_run("bad", logits=True)
    for file in ("predictions_last.npz", "val_predictions_last.npz"):
        stored = read_npz(bad / file)
        stored["logits"][5, 1] = value
        np.savez_compressed(bad / file, **stored)
    board, html = page(tmp_path / "runs")
    assert "val_predictions_last.npz" in html
    assert not board.tables[0].lines[0].posthoc


def test_nothing_outside_a_run_is_embedded(make_run, secret, tmp_path):
    run = make_run("bad")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/last.png").write_bytes(SECRET)
    (run / "samples").symlink_to(tmp_path / "elsewhere")
    (run / "x.png").symlink_to(secret)
    (run / "y.png").write_text("not a picture")
    fifo(run / "z.png")
    (run / "analysis").mkdir()
    (run / "analysis/a.png").symlink_to(secret)
    content = {"title": "a", "summary": [], "figures": ["a.png"], "tables": []}
    (run / "analysis/a.json").write_text(json.dumps(content))
    _, html = page(tmp_path / "runs")
    assert "data:image" not in html
    for name in ("samples/last.png", "x.png", "y.png", "z.png", "analysis/a.png"):
        assert f"{run / name} is not shown" in html


def test_nor_exported(workshop, ltbench, secret):
    ltbench("bench", "run", workshop({"one": {"config": 1}}))
    (run,) = Path("runs/bench").glob("one-seed0-*/one-0")
    (run / "config.yaml").symlink_to(secret)
    (run / "traces.npz").symlink_to(secret)
    (run / "samples").symlink_to(secret.parent)
    (secret.parent / "last.png").write_bytes(SECRET)
    fifo(run / "metrics.csv")
    (run / "corrected_last.json").write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="left out") as warned:
        done = ltbench("bench", "export", "mine", "--to", "published")
    assert done.code == 0, done.err
    left_out = "\n".join(str(warning.message) for warning in warned)
    told = ("config.yaml", "traces.npz", "samples/last.png", "metrics.csv", "corrected_last.json")
    assert all(str(run / name) in left_out for name in told)
    copied = [path for path in Path("published").rglob("*") if path.is_file()]
    assert {path.name for path in copied} == {"mine.json", "job.json", "record.json"}


@pytest.mark.parametrize(
    "damage",
    [
        fifo,
        text("hello"),
        lambda path: torch.save([1], path),
        lambda path: torch.save({"state_dict": {"net.head.weight": "text"}}, path),
        lambda path: torch.save({"state_dict": {"net.head.weight": torch.zeros(3, 2)}}, path),
    ],
)
def test_a_bad_checkpoint_costs_its_correction_alone(damage, make_run, tmp_path):
    run = make_run("bad", logits=True)
    (run / "checkpoints").mkdir()
    damage(run / "checkpoints/last.ckpt")
    board, html = page(tmp_path / "runs")
    (line,) = board.tables[0].lines
    assert line.posthoc["accuracy"].keys() == {"logit adjustment"}
    if not line.posthoc["accuracy"]:
        assert "last.ckpt" in html


def test_the_line_that_runs_it_again_is_one_command(make_run, tmp_path):
    make_run("a", job_id="x; touch /tmp/y $(z)")
    _, html = page(tmp_path / "runs")
    assert "reproduce &#39;x; touch /tmp/y $(z)&#39;" in html


def test_a_name_is_neither_obeyed_nor_run(make_run, tmp_path):
    make_run("=1+1")
    bad = make_run("bad")
    change_record(bad, config={"model": {"init_args": {"backbone": "\x1b[2Jnet"}}})
    (tmp_path / "runs/\x1b[2J").mkdir()
    (tmp_path / "runs/\x1b[2J/record.json").write_text("")
    board, _ = page(tmp_path / "runs")
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal.render(board, [], 200))
    shown = console.file.getvalue() + tables.markdown(board, [])
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    rows = {line[1] for line in csv.reader(io.StringIO(tables.as_csv(board)))}
    assert rows == {"row", "'=1+1", "bad"}

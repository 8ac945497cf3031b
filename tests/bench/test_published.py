"""The tables in the documentation are those of the committed records: nothing there is typed."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/leaderboard.md"
COMMAND = ("leaderboard", "cifar10_lt_small", "--folder", "benchmarks/results")


def test_the_page_is_that_of_the_records(ltbench, tmp_path):
    done = ltbench(*COMMAND, "--output", str(tmp_path / "page.md"), cwd=ROOT)
    assert done.code == 0
    assert PAGE.read_text() == (tmp_path / "page.md").read_text(), (
        f"write it anew: ltbench {' '.join(COMMAND)} --output docs/leaderboard.md"
    )


@pytest.mark.parametrize("text", ["README.md", "docs/findings.md"])
def test_the_gains_in_the_text_are_those_of_the_page(text):
    effects = rows_of(PAGE.read_text().replace("\\", ""))
    shown = rows_of((ROOT / text).read_text().replace("`", ""))
    assert len(shown) >= 5
    for row, cells in shown.items():
        assert cells.items() <= effects[row].items()


def rows_of(page):
    """Return row -> title -> cell of the tables of effects."""
    cells_of = {}
    for table in page.split("| row | over |")[1:]:
        header, _, *lines = table.splitlines()
        titles = ["over", *re.split(r" *\| *", header.strip(" |"))]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines):
            row, *cells = re.split(r" *\| *", line.strip(" |"))
            cells_of[row] = dict(zip(titles, cells, strict=True))
    return cells_of


def test_the_prior_given_back_makes_of_stored_scores_what_the_table_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = Path("docs/findings.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "findings", "exec"), {})
    made = [
        [100 * float(x) for x in line.split()[1:]] for line in capsys.readouterr().out.splitlines()
    ]
    (row,) = re.findall(r"^\| `vssam` \| (\S+ \(.*) \|$", text, re.MULTILINE)
    cells = [f"{all_:.1f} ({head:.0f}/{tail:.0f}; {least:.0f})" for all_, head, tail, least in made]
    assert row.split(" | ") == cells

"""Everything that README and tutorial show in a fence is run, and what the pages say stays true."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ltbench.cli
from ltbench import catalog

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {
    text.partition("\n")[0]: FENCE.findall(text) for text in re.split(r"^## ", README, flags=re.M)
}
SHORT = shlex.split(
    "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.accelerator cpu "
    "--trainer.enable_progress_bar false"
)


@pytest.fixture
def workplace(tmp_path, monkeypatch, make_images, digits_run):
    """A working folder like a user's: configs, a run, a long tail of images, new images."""
    shutil.copytree(digits_run.folder, tmp_path / "runs/ce_digits-01234567")
    for name in ("configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    make_images(tmp_path / "my_images/train", {"ant": 12, "bee": 6, "cat": 3}, size=40)
    make_images(tmp_path / "my_images/test", {"ant": 2, "bee": 2, "cat": 2}, size=40, seed=1)
    make_images(tmp_path / "new_images", {"": 3}, size=40, seed=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # `python -m` finds files of the working folder
    yield tmp_path
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)


def run_bash(block, ltbench):
    """Run each command, and return what they print."""
    printed = ""
    for line in block.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        if "=" in program:  # a variable for this command; the command line puts all back
            os.environ |= [program.split("=")]
            program, *words = words
        if program == "make":
            subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
            continue
        if program == "python" and words[0].endswith(".py"):
            subprocess.run([sys.executable, *words], check=True)
            continue
        if program == "python":
            assert words[:2] == ["-m", "ltbench"]
            words = words[2:]
        else:
            assert program == "ltbench"
        done = ltbench(*(expanded(word) for word in words), *stand_ins(words))
        assert done.code == 0, f"{line}\n{done.err}"
        printed += done.out
    return printed


def expanded(word):
    """What a shell hands over for a word: the one file that a pattern matches."""
    if "*" not in word:
        return word
    (found,) = Path().glob(word)
    return str(found)


def stand_ins(words):
    """What shortens a training, and puts the bundled digits in the place of a download."""
    cifar = words[0] != "leaderboard" and any("cifar" in word for word in words)
    digits = ["--data.source", "digits"] if cifar else []
    return SHORT + digits if words[0] == "fit" else digits


def run_block(kind, block, ltbench):
    if kind == "bash":
        return run_bash(block, ltbench)
    named = re.match(r"# (\S+\.\w+)\n", block)
    assert kind in ("python", "yaml"), f"a page has a block of a kind that is not run: '{kind}'"
    if named:
        Path(named[1]).write_text(block)  # a command after it uses it
    else:
        assert kind == "python", "a config in a page says its file name in its first line"
        exec(compile(block, "page", "exec"), {"__name__": "page"})
    return ""


# Lightning's advice to a plain Trainer, and when a checkpoint is read without what trained it.
@pytest.mark.filterwarnings("ignore:Be aware that when using", "ignore:The dirpath has changed")
@pytest.mark.parametrize("section", [title for title, blocks in SECTIONS.items() if blocks])
def test_what_a_section_shows_runs(section, workplace, ltbench):
    for kind, block in SECTIONS[section]:
        run_block(kind, block, ltbench)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_tutorial_runs_from_top_to_bottom(workplace, ltbench):
    printed = "".join(run_block(kind, block, ltbench) for kind, block in FENCE.findall(TUTORIAL))
    rows = Path("predictions.csv").read_text()
    assert len(rows.splitlines()) == 1 + 5
    # What a table shows of is printed by these names: a result, a row, an image.
    tables = re.findall(r"^\| (?:\d \| )?`?([^|`\n]+?)`? \|", TUTORIAL, re.MULTILINE)
    shown = set(tables) - {"---", "---:", "rank", "image"}
    assert len(shown) > 10
    assert {name for name in shown if name not in printed + rows} == set()


def test_an_unknown_kind_of_block_is_not_passed_over(ltbench):
    with pytest.raises(AssertionError, match="not run: 'toml'"):
        run_block("toml", "a = 1\n", ltbench)


def test_every_fence_is_found():
    assert sum(map(len, SECTIONS.values())) * 2 == README.count("```")
    assert len(README.splitlines()) <= 200


def test_links_lead_somewhere():
    for page, home in ((README, ROOT), (TUTORIAL, ROOT / "docs")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (home / link).exists(), link


def test_the_table_of_recipes_is_that_of_the_configs():
    """Each shipped config is in the table, and each name in the table is a config."""
    table = README.partition("| config |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = [name.replace("*", ".*") for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    shipped = list(catalog.configs())
    assert all(any(re.fullmatch(name, config) for config in shipped) for name in named)
    assert all(any(re.fullmatch(name, config) for name in named) for config in shipped)


def test_the_picture_in_the_design_shows_the_imports_between_rooms():
    """The arrows of docs/design.md, against the imports in the source (errors: used by all)."""
    picture = (ROOT / "docs/design.md").read_text().partition("```mermaid\n")[2].partition("```")[0]
    drawn = {
        (room, used)
        for room, targets in re.findall(r"^ *(\w+) --> (.+)$", picture, re.MULTILINE)
        for used in targets.split(" & ")
    }
    assert drawn == imports_between_rooms()


def imports_between_rooms():
    package = Path(ltbench.cli.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                names = inside if node.module == "ltbench" else [node.module]
            used = {name.split(".")[1] for name in names if name.startswith("ltbench.")}
            found |= {(room, other) for other in used - {room, "errors", "__version__"}}
    return {(room, other) for room, other in found if not room.startswith("__")}

"""Configs that cite a paper say where their parts come from, and each part has a backing."""

import ast
import importlib
import re

import pytest

from ltbench import catalog


@pytest.fixture(scope="module")
def recipes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(catalog.folder("configs").resolve().parent / "benchmarks")
        yield importlib.import_module("recipes")


def test_the_page_is_what_the_configs_and_cards_say(recipes):
    assert recipes.PAGE.read_text() == recipes.page(), "run python benchmarks/recipes.py"


def test_every_config_of_a_paper_is_on_the_page_and_shows_its_line(recipes, ltbench):
    page = recipes.PAGE.read_text()
    rows, others = page.split("## Configs of no paper")
    for path in (recipes.ROOT / "configs").glob("*.yaml"):
        cites = bool(re.search(r"arXiv|\d{4}\.\d{5}", recipes.comment(path)))
        assert (f"`{path.stem}`" in rows) >= cites
        assert (f"`{path.stem}`" in rows) != (f"`{path.stem}`" in others)
    line = recipes.comment(recipes.ROOT / "configs/selmix_cifar10.yaml").splitlines()[-1]
    assert "Changed: network" in line
    assert line in ltbench("show", "selmix_cifar10").out.splitlines()


def test_what_is_held_by_a_test_names_one_that_exists(recipes):
    tests = {test for of_config in recipes.HELD.values() for test in of_config.values()}
    for test in tests:
        file, _, name = test.partition("::")
        tree = ast.parse((recipes.ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test
    backed = {p.backing for c in recipes.cited() for p in recipes.origins(c).values()}
    assert tests <= backed  # nothing is left over


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("# Released (1): network, init. Ours: views, optimiser, schedule, data.", "last comment"),
        ("# Ours: network, init, views, optimiser, schedule, selection, data, data.", "last"),
        ("# Ours: network, init, views, optimiser, schedule, selection, data", "last comment"),
        ("# Ours: init, views, optimiser, schedule, selection, data. Changed: network.", "card"),
        (
            "# Ours: init, views, optimiser, schedule, selection, data. Stated: network.",
            "holds",
        ),
    ],
)
def test_a_line_that_leaves_something_open_is_refused(line, word, recipes, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"# Mine (arXiv 1234.56789).\n{line}\nmodel: {{class_path: ERM}}\n")
    with pytest.raises(ValueError, match=word):
        recipes.origins(path)

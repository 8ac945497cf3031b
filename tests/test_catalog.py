"""``ltbench list`` and ``show`` say what there is, and say it of the classes that are there."""

import importlib
import json
from dataclasses import asdict

import pytest

from ltbench import catalog
from ltbench.data.sources import DESCRIPTIONS
from ltbench.methods.erm import ERM


def test_every_method_file_is_listed_with_its_first_line(ltbench):
    listed = json.loads(ltbench("list", "methods", "--json").out)
    module = importlib.import_module("ltbench.methods.erm")
    assert listed["erm"] == module.__doc__.splitlines()[0]
    assert listed == catalog.methods()
    assert not {"base", "__init__"} & listed.keys()


@pytest.mark.parametrize("method", catalog.methods())
def test_the_card_read_from_the_source_is_the_card_of_the_class(method):
    module = importlib.import_module(f"ltbench.methods.{method}")
    cards = [
        asdict(found.paper) | {"deviations": [*found.paper.deviations]}
        for found in vars(module).values()
        if isinstance(found, type)
        and found.__module__.startswith(module.__name__)
        and "paper" in vars(found)
    ]
    assert catalog.paper(method) in cards


@pytest.mark.parametrize("place", ERM.paper.equations.values())
def test_every_equation_of_a_card_names_something_that_exists(place):
    module, _, name = place.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_list_shows_everything_and_json_is_the_same(ltbench):
    done = ltbench("list")
    sections = json.loads(ltbench("list", "--json").out)
    assert sections.keys() == {"methods", "datasets", "configs", "suites"}
    assert sections["datasets"] == DESCRIPTIONS
    assert "vssam_digits" in sections["configs"]
    for rows in sections.values():
        for name, text in rows.items():
            assert name in done.out
            assert text
            assert "\n" not in text


def test_configs_of_the_working_folder_come_first(ltbench, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.yaml").write_text("# My own [recipe].\ntrainer: {}\n")
    assert json.loads(ltbench("list", "configs", "--json").out) == {"mine": "My own [recipe]."}
    assert "My own [recipe]." in ltbench("list", "configs").out
    assert ltbench("show", "mine").out == "# My own [recipe].\ntrainer: {}\n"


def test_show_prints_a_method_a_data_set_and_a_config(ltbench):
    shown = " ".join(ltbench("show", "erm").out.split())
    assert ERM.paper.title in shown
    assert ERM.paper.arxiv in shown
    assert "ltbench.losses.vs_loss" in shown
    for deviation in ERM.paper.deviations:
        assert deviation in shown
    assert "vssam_cifar10" in shown
    assert DESCRIPTIONS["folder"] in " ".join(ltbench("show", "folder").out.split())
    assert "class_path: ERM" in ltbench("show", "ce_cifar100").out


@pytest.mark.parametrize(
    "words", [["--config", "ce_digits"], ["--config=ce_digits"], ["-c", "ce_digits"]]
)
def test_a_config_can_be_given_by_its_name(words, ltbench):
    done = ltbench("fit", *words, "--trainer.max_epochs", 7, "--print_config")
    assert done.code == 0, done.err
    assert "\n  max_epochs: 7\n" in done.out


def test_a_file_comes_before_the_config_of_that_name(ltbench, tmp_path):
    (tmp_path / "ce_digits").write_text("trainer: {max_epochs: 5}\n")
    (tmp_path / "vs_digits").mkdir()
    words = ["fit", "--config", "vssam_digits", "--config", "ce_digits", "--print_config"]
    assert "\n  max_epochs: 5\n" in ltbench(*words).out


def test_a_config_is_shown_by_path_too(ltbench, tiny):
    assert ltbench("show", tiny).out == tiny.read_text()


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["list", "method"], "methods"),
        (["show", "emr"], "erm"),
        (["show", "cifar-10"], "cifar10"),
        (["show", "vssam_cifar"], "vssam_cifar"),
        (["show", "nowhere/ce_digits.yaml"], "ce_digits"),
        (["fit", "--config", "vssam_digit"], "vssam_digits"),
        (["data", "--config", "configs/vssam_digit"], "vssam_digits"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(words, near, refused):
    assert f"Did you mean '{near}" in refused(*words)


@pytest.mark.parametrize("words", [["list", "--jso"], ["show"], ["list", "methods", "configs"]])
def test_arguments_are_not_abbreviated_or_made_up(words, ltbench):
    done = ltbench(*words)
    assert done.code == 2
    assert words[0] in done.err

"""Open names: ours by a short name, the user's by its import path, either with arguments."""

import collections
import textwrap

import pytest

from ltbench.data.samplers import SAMPLERS
from ltbench.data.sources import SOURCES
from ltbench.errors import UserError
from ltbench.naming import resolve


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("LTBENCH_TRUST", "collections,fractions,no_such_package")


TABLE = {"mapping": dict, "wrapper": "textwrap.TextWrapper"}


def test_a_short_name_is_one_of_ours() -> None:
    assert resolve("thing", "mapping", TABLE) is dict
    assert resolve("thing", "wrapper", TABLE) is textwrap.TextWrapper  # imported when asked for


def test_an_import_path_is_the_users_own() -> None:
    assert resolve("thing", "collections.OrderedDict", TABLE) is collections.OrderedDict
    assert resolve("thing", {"class_path": "collections.OrderedDict"}, TABLE, dict)


def test_arguments_are_bound_whoever_it_belongs_to() -> None:
    made = resolve("thing", {"class_path": "fractions.Fraction", "init_args": {"numerator": 3}}, {})
    assert made() == 3
    made = resolve("thing", {"class_path": "wrapper", "init_args": {"width": 7}}, TABLE)
    assert made().width == 7


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("maping", "mapping"),
        ("collections.abc:Sized", "mapping"),  # which the gate of trusted packages would not see
        ("no_such_package.Thing", "no_such_package"),
        ("collections.NoSuchThing", "NoSuchThing"),
        ("collections.abc", "collections.abc"),
        ({"class_path": 3}, "class_path"),
        ({"class_path": "mapping", "arguments": {}}, "init_args"),
        ({"class_path": "fractions.Fraction", "init_args": {"numerater": 3}}, "numerator"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_name(name: str | dict, told: str) -> None:
    with pytest.raises(UserError, match=f"thing.*{told}|{told}.*thing"):
        resolve("thing", name, TABLE)


def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"subclass of builtins\.dict"):
        resolve("thing", "fractions.Fraction", TABLE, dict)


def test_a_part_of_ours_is_found_by_the_name_of_its_class_too():
    assert resolve("sampler", "ClassBalancedSampler", SAMPLERS) is SAMPLERS["class_balanced"]
    assert resolve("source", "Digits", SOURCES) is resolve("source", "digits", SOURCES)

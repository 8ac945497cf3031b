"""What the user's own code is: what LTBENCH_TRUST names, and nothing that it has imported."""

import importlib
import inspect
import subprocess
import sys

import pytest

from ltbench import trust
from ltbench.errors import UserError
from ltbench.trust import MODULES, VARIABLE


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's, in two modules, that uses others."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/losses.py").write_text(
        "import functools, os, subprocess as alias, torch\n"
        "from os import system\n"
        "from ltbench.losses import vs_loss\n"
        "def loss(): pass\n"
        "class Loss:\n"
        "    @staticmethod\n"
        "    def inner(): pass\n"
        "bound = functools.partial(loss)\n"
        "borrowed = functools.partial(system, 'true')\n"
        "instance = torch.nn.CrossEntropyLoss()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("mine", "mine.losses"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("entry", ["mine", "mine.losses", "other,mine", " mine , other "])
@pytest.mark.parametrize("name", ["loss", "Loss", "Loss.inner", "bound", "instance", "vs_loss"])
def test_ones_own_code_is_imported(entry, name, mine, monkeypatch):
    monkeypatch.setenv(VARIABLE, entry)
    assert trust.imported(f"mine.losses.{name}") is not None


@pytest.mark.parametrize(
    "name", ["system", "os.system", "alias.run", "borrowed", "torch.hub.load", "functools.partial"]
)
def test_what_it_imported_is_not_ones_own(name, mine, monkeypatch):
    monkeypatch.setenv(VARIABLE, "mine")
    with pytest.raises(UserError, match="runs the code"):
        trust.imported(f"mine.losses.{name}")


@pytest.mark.parametrize("entry", ["", "min", "mine.other", "mine_too"])
def test_nothing_is_imported_to_find_out(entry, mine, monkeypatch):
    monkeypatch.setenv(VARIABLE, entry)
    with pytest.raises(UserError, match=f"{VARIABLE}=mine"):
        trust.imported("mine.losses.loss")
    assert "mine" not in sys.modules


@pytest.mark.parametrize("entry", ["*", "my package!", "a..b", "3", "jsonargparse", "a,-"])
def test_a_name_that_trusts_nothing_in_particular_is_refused(entry, monkeypatch):
    monkeypatch.setenv(VARIABLE, entry)
    with pytest.raises(UserError, match=VARIABLE):
        trust.vouched()


@pytest.mark.parametrize("path", ["torch.hub.load", "lightning.pytorch.loggers.WandbLogger"])
def test_of_a_package_that_everybody_has_only_a_module_is_vouched_for(path):
    assert f"{VARIABLE}={path.rpartition('.')[0]} " in trust.refusal(path)


@pytest.mark.parametrize("path", MODULES)
def test_the_list_names_what_there_is(path):
    """In a fresh process a config may name these before anything else imports them."""
    try:
        assert inspect.ismodule(importlib.import_module(path))
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), name))


def test_it_is_light():
    code = "import sys, ltbench.trust; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

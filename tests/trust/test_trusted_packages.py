"""A config may name classes of known packages alone: to import another one runs its code."""

import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ltbench import shipped
from ltbench.errors import UserError
from ltbench.runs.trust import TRUSTED, VARIABLE, require_trusted


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A package that leaves a file behind when it is imported, and the place of that file."""
    (tmp_path / "payload.py").write_text(
        "import pathlib, torch\n"
        f"pathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        "class SGD(torch.optim.SGD): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "executed"
    sys.modules.pop("payload", None)


PLACES = [
    {"model": {"class_path": "payload.SGD"}},
    {"model": "payload.SGD"},
    {"model": {"class_path": "ERM", "init_args": {"optimizer": "payload.SGD"}}},
    {"trainer": {"callbacks": [{"class_path": "payload.SGD"}]}},
    {"data": {"class_path": "LongTailDataModule", "init_args": {"augment": ["payload.SGD"]}}},
    {"data": {"sampler": "payload.SGD"}},
]


@pytest.mark.parametrize("config", PLACES)
def test_a_config_imports_no_package_that_nobody_vouched_for(payload, refused, config):
    payload.with_name("evil.yaml").write_text(yaml.safe_dump(config))
    told = refused("fit", "--config", "evil.yaml")
    assert "evil.yaml names payload.SGD" in told
    assert "LTBENCH_TRUST=payload" in told
    assert not payload.exists()


@pytest.mark.parametrize("key", ["class_path", "sampler", "source", "loss"])
def test_a_file_of_that_name_does_not_vouch_for_it(payload, key):
    payload.with_name("payload.SGD").touch()
    require_trusted({"root": "payload.SGD"}, "x")
    with pytest.raises(UserError, match="runs its code"):
        require_trusted({key: "payload.SGD"}, "x")


@pytest.mark.parametrize(
    "words",
    [
        ["--model=payload.SGD"],
        ["--model.class_path", "payload.SGD"],
        ["--trainer.callbacks", "[{class_path: payload.SGD}]"],
    ],
)
def test_nor_does_an_argument(payload, refused, words):
    assert "payload.SGD" in refused("fit", *words)
    assert not payload.exists()


def test_a_package_can_be_vouched_for(payload, ltbench, monkeypatch):
    monkeypatch.setenv(VARIABLE, "other, payload")
    words = ["--model.optimizer", "{class_path: payload.SGD, init_args: {lr: 0.1}}"]
    words += ["--data.largest", "20", "--trainer.max_epochs", "1"]
    done = ltbench("fit", "--config", shipped.folder("configs") / "ce_digits.yaml", *words)
    assert done.code == 0, done.err
    assert payload.exists()


@given(st.sampled_from(sorted(TRUSTED)), st.from_regex(r"\A(\.[a-z_]+){1,3}\Z"))
def test_classes_of_trusted_packages_pass(package, rest):
    require_trusted({"a": [{"class_path": package + rest}]}, "x")


@pytest.mark.parametrize("text", ["os.system", "subprocess.Popen", "builtins.exec", "__main__.x"])
def test_python_itself_is_no_trusted_package(text):
    with pytest.raises(UserError, match="runs its code"):
        require_trusted({"optimizer": text}, "x")


@pytest.mark.parametrize(
    "text", ["vit_base_patch16_224.augreg_in21k", "train.txt", "0.5", "runs/x.y", "a sentence."]
)
def test_other_texts_with_a_dot_are_left_alone(text):
    require_trusted({"root": text}, "x")

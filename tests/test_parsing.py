"""What a parser's complaint becomes: the place, the mistake, the nearest valid name."""

import pytest
from jsonargparse import lazy_instance

from ltbench.data import LongTailDataModule
from ltbench.data.base import DataModule
from ltbench.data.semi import SemiSupervisedDataModule  # noqa: F401  (named below)
from ltbench.errors import UserError
from ltbench.optim.sam import GradientRule
from ltbench.runs.parsing import Parser, cause, explain

UNKNOWN = [
    (
        "unrecognized arguments: --trainer.max_epoch 3",
        "unknown option '--trainer.max_epoch'. Did you mean '--trainer.max_epochs'?",
    ),
    (
        "unrecognized arguments: --modle.init_args.loss x",
        "unknown option '--modle.init_args.loss'. Did you mean '--model.init_args.loss'?",
    ),
    (
        "unrecognized arguments: runs/a-2 runs/a-3",
        "unrecognized arguments: runs/a-2 runs/a-3. If a pattern such as runs/NAME-* matches "
        "several files, name one.",
    ),
    ("unrecognized arguments: --zzz", "unknown option '--zzz'."),
    (
        "Parser key \"data.init_args\":\n  Option 'batchsize' is not accepted",
        "unknown option 'batchsize' in data.init_args. Did you mean 'batch_size'?",
    ),
    (
        'Parser key "model.init_args.gradient_rule":\n  Does not validate against any of the '
        "Union subtypes\n  Expected a dot import path string: SAMM",
        "unknown class 'SAMM' in model.init_args.gradient_rule. Did you mean 'SAM'?",
    ),
]


@pytest.mark.parametrize(("message", "told"), UNKNOWN)
def test_unknown_names(message, told):
    assert explain(message) == told


def test_other_complaints_keep_the_place_the_reason_and_the_value():
    told = explain(
        'Parser key "trainer.max_epochs":\n'
        "  Does not validate against any of the Union subtypes\n"
        "  Subtypes: [<class 'int'>, <class 'NoneType'>]\n"
        "  Errors:\n"
        "    - Expected a <class 'int'>\n"
        "    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'str'>\n"
        "  Given value: ten"
    )
    assert told.startswith("trainer.max_epochs: ")
    assert "Expected a <class 'int'>" in told
    assert "ten" in told
    assert "\n" not in told


def test_required_arguments_point_to_the_configs():
    assert "ltbench list configs" in explain("the following arguments are required: model, data")


def test_a_mistake_found_deep_inside_comes_out_as_it_was():
    mistake = UserError("head: cosine is needed.")
    outer = ValueError("Problem with given class_path")
    outer.__cause__ = TypeError("in between")
    outer.__cause__.__context__ = mistake
    assert cause(outer) is mistake
    assert cause(ValueError("plain")) is None
    assert cause(None) is None


def test_the_parser_raises_instead_of_exiting():
    parser = Parser(allow_abbrev=False)
    parser.add_argument("--number", type=int)
    assert parser.parse_args(["--number", "3"]).number == 3
    with pytest.raises(UserError, match="number"):
        parser.parse_args(["--number", "three"])
    with pytest.raises(UserError, match="--numb"):
        parser.parse_args(["--numb", "3"])


def test_arguments_that_another_class_does_not_take_are_told(caplog):
    parser = Parser()
    parser.add_argument("--rule", type=GradientRule)
    parser.parse_args(["--rule", "SAM", "--rule.rho", "0.3", "--rule", "LPFSGD"])
    (told,) = caplog.messages
    assert told.startswith("warning: LPFSGD replaces SAM, whose 'rho': 0.3")
    assert told.endswith("is dropped.")


def test_defaults_that_another_class_does_not_take_are_not_told(caplog):
    parser = Parser()
    parser.add_argument("--data", type=DataModule, default=lazy_instance(LongTailDataModule))
    parser.parse_args(["--data", "SemiSupervisedDataModule"])
    assert caplog.messages == []
    parser.parse_args(["--data.val_fraction", "0.2", "--data", "SemiSupervisedDataModule"])
    (told,) = caplog.messages
    assert told.endswith("replaces LongTailDataModule, whose 'val_fraction': 0.2 is dropped.")

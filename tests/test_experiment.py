"""What a config is built into, and that classes of ours are known by any path they ever had."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from ltbench import build, records
from ltbench.data.transforms.basic import RandomCrop
from ltbench.errors import UserError
from ltbench.methods.erm import ERM
from ltbench.optim.sam import SAM
from ltbench.runs.parsing import _classes

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


def test_a_config_is_built_from_a_path_a_name_or_a_dict(tiny):
    by_path, by_dict = build(tiny), build(yaml.safe_load(tiny.read_text()))
    assert by_path.config == by_dict.config | {"name": "tiny"}
    assert by_path.job_id == by_dict.job_id
    assert by_path.folder == Path(f"runs/tiny-{by_path.job_id[:8]}")
    assert isinstance(by_path.model, ERM)
    assert by_path.data.num_classes == by_path.model.num_classes == 10
    assert build("ce_digits").config["name"] == "ce_digits"


def test_it_is_what_the_run_of_the_same_config_says_of_itself(digits_run):
    record = records.read_record(digits_run.folder / "record.json")
    experiment = build(digits_run.config)
    assert (experiment.job_id, experiment.config) == (record["job_id"], record["config"])


def test_overrides_are_settings_or_words(tiny):
    settings = {"model.loss": "vs_loss", "model.optimizer.lr": 0.5, "data.augment": []}
    words = ["--model.loss", "vs_loss", "--model.optimizer.lr", "0.5", "--data.augment=[]"]
    one, other = build(tiny, settings), build(tiny, words)
    assert one.config == other.config
    assert one.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5
    assert one.data.augment == []


@pytest.mark.parametrize(
    ("config", "overrides", "says"),
    [
        ("vssam_digit", {}, "vssam_digits"),
        ("ce_digits", {"model.los": "ce"}, "loss"),
        ({"trainer": {}}, {}, "model"),
        ({"model": 3}, {}, "model"),
        ("ce_digits", {"model.num_classes": 7}, "num_classes"),
    ],
)
def test_mistakes_are_named(config, overrides, says):
    with pytest.raises(UserError, match=says):
        build(config, overrides)


def test_old_paths_of_our_classes_are_known(ltbench, tiny):
    old = yaml.safe_load(tiny.read_text())
    old["model"]["class_path"] = "ltbench.methods.erm.ERM"
    old["model"]["init_args"]["gradient_rule"] = {"class_path": "ltbench.sam.SAM"}
    old["data"]["class_path"] = "ltbench.data.datamodule.LongTailDataModule"
    old["data"]["init_args"]["augment"] = [{"class_path": "ltbench.data.augment.RandomCrop"}]
    built = build(old, ["--model.lr_schedule", "ltbench.schedules.Constant"])
    assert type(built.model.gradient_rule) is SAM
    assert [type(transform) for transform in built.data.augment] == [RandomCrop]
    assert built.config["model"]["init_args"]["lr_schedule"]["class_path"] == "Constant"


@pytest.mark.parametrize("row", ["ce", "csst_min", "selmix_min", "paco", "deitlt", "cbgan"])
def test_the_config_of_an_old_run_is_read(ltbench, row):
    (run,) = RESULTS.glob(f"{row}-seed0-*/{row}-*/config.yaml")
    done = ltbench("fit", "--config", run, "--print_config")
    assert done.code == 0, done.err
    record = records.read_record(run.parent / "record.json")
    read = {**record, "config": yaml.safe_load(done.out)}
    assert records.recipe(read) == records.recipe(record)


def test_no_two_classes_of_ours_have_the_same_name():
    ours = {c for c in _classes() if c.__module__.startswith("ltbench.")}
    assert {name for name, times in Counter(c.__name__ for c in ours).items() if times > 1} == set()

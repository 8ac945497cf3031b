"""The names that users and tests outside this repository rely on: they stay where they are."""

import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch

from ltbench import losses
from ltbench.cli import main
from ltbench.metrics import LongTailMetrics
from ltbench.shipped import folder

ROOT = Path(__file__).parents[1]

NAMES = {
    "ltbench.cli": ["main"],
    "ltbench.losses": [
        "balanced_softmax_loss",
        "class_balanced_weights",
        "cross_entropy_loss",
        "focal_loss",
        "ldam_loss",
        "logit_adjusted_loss",
        "vs_loss",
    ],
    "ltbench.objectives": ["OBJECTIVES"],
    "ltbench.metrics": ["LongTailMetrics"],
    "ltbench.data": ["LongTailDataModule"],
    "ltbench.data.profiles": ["class_counts"],
    "ltbench.methods.erm": ["ERM"],
    "ltbench.methods.paco": ["PaCo"],
    "ltbench.methods.fixmatch": ["FixMatch"],
    "ltbench.methods.csst": ["CSST"],
    "ltbench.methods.deit_lt": ["DeiTLT"],
    "ltbench.methods.selmix": ["SelMix"],
    "ltbench.methods.cbgan": ["CBGAN"],
}

METRICS = {
    *("accuracy", "mean_recall", "hmean_recall", "gmean_recall", "min_recall", "min_coverage"),
    *("min_ht_recall", "many_recall", "medium_recall", "few_recall", "head_recall", "mid_recall"),
    *("tail_recall", "dead_classes", "ece"),
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names])
def test_a_public_name_is_where_it_always_was(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", [n for n in NAMES["ltbench.losses"] if n.endswith("_loss")])
def test_a_loss_is_a_function_of_logits_targets_and_counts(name):
    loss = getattr(losses, name)
    assert list(inspect.signature(loss).parameters)[:3] == ["logits", "targets", "class_counts"]
    value = loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([9.0, 5.0, 2.0]))
    assert value.shape == ()


def test_the_collector_has_the_metrics_of_records_and_tables():
    collector = LongTailMetrics(3, torch.tensor([9, 5, 2]))
    collector.update(torch.eye(3), torch.arange(3))
    assert collector.compute().keys() >= METRICS


@pytest.mark.parametrize(
    "command",
    ["fit", "validate", "test", "predict", "data", "list", "show", "bench", "leaderboard"],
)
def test_a_command_is_named_in_the_usage(command, capsys):
    main(["--help"])
    assert f"\n  {command} " in capsys.readouterr().out


def test_shipped_names(capsys):
    main(["list", "--json"])
    shipped = json.loads(capsys.readouterr().out)
    assert shipped["methods"].keys() >= {m.rpartition(".")[2] for m in NAMES if ".methods." in m}
    assert shipped["configs"].keys() >= {"vssam_digits", "deitlt_inat", "selmix_folder"}
    assert shipped["suites"].keys() >= {"smoke", "cifar10_lt_small"}
    assert (folder("benchmarks") / "claims.yaml").is_file()
    assert any((ROOT / "benchmarks/results").glob("**/record.json"))

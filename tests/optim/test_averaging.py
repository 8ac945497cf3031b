"""The average of the weights: torch's own, where the weights are."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from ltbench.optim.averaging import WeightAverage


def module():
    torch.manual_seed(0)
    found = L.LightningModule()
    found.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return found


def trainer(device="cpu"):
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), global_step=0
    )


def follow(average, at, model):
    average.on_train_batch_end(at, model, None, None, 0)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_it_is_torchs_average_after_each_step(use_buffers):
    model, at, average = module(), trainer(), WeightAverage(0.9, use_buffers)
    average.begin(at, model)
    theirs = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=use_buffers)
    for at.global_step in (1, 2, 3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model.net(torch.randn(5, 3))
        follow(average, at, model)
        theirs.update_parameters(model)
    found, expected = average._average_model.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if "num_batches" in name:  # of which no average is taken
            value = torch.tensor(3)
        torch.testing.assert_close(found[name], value)


def test_a_step_that_was_left_out_changes_nothing():
    model, at, average = module(), trainer(), WeightAverage(0.9, False)
    average.begin(at, model)
    at.global_step = 1
    follow(average, at, model)
    before = average._average_model.module.net[0].weight.clone()
    nn.init.zeros_(model.net[0].weight)
    follow(average, at, model)
    assert torch.equal(average._average_model.module.net[0].weight, before)


def test_it_lies_on_the_device_of_training():
    average = WeightAverage(0.9, True)
    average.begin(trainer("meta"), module())
    assert all(value.is_meta for value in average._average_model.state_dict().values())

"""SelMix: objectives, control policies, and shares of one pair."""

import pytest
import torch
from selmix_digits import Looks, train
from torch.testing import assert_close

from ltbench.objectives import OBJECTIVES
from ltbench.runs.callbacks.anomalies import Anomalies


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_the_shared_module_can_be_fine_tuned_towards(start, objective):
    looks = Looks()
    model, trainer = train(start, epochs=1, cycle=1, callbacks=[looks], objective=objective)
    trainer.validate(model, trainer.datamodule, verbose=False)
    assert model.monitor in trainer.callback_metrics
    assert 0 <= float(looks.found[0]["train/objective"]) < 1
    assert float(looks.traces[0]["pair_shares"].sum()) == pytest.approx(1)


@pytest.mark.parametrize("policy", ["uniform", "class_balanced", "greedy"])
def test_controls_draw_their_pairs(start, policy):
    looks = Looks()
    train(start, epochs=2, callbacks=[looks], policy=policy)
    for traces in looks.traces:
        shares = traces["pair_shares"]
        if policy == "greedy":
            assert shares.max() == 1
        else:
            shape = torch.ones(10, 10) if policy == "uniform" else torch.eye(10)
            assert_close(shares, shape / shape.sum())


@pytest.mark.parametrize(("options", "told"), [({"sharpness": 1e6}, 1), ({"policy": "greedy"}, 0)])
def test_a_sharpness_that_leaves_one_pair_is_told_once(start, options, told, caplog):
    train(start, epochs=2, callbacks=[Anomalies()], **options)
    assert caplog.text.count("policy: greedy") == told

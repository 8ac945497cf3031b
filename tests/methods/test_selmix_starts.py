"""SelMix: which networks and data it starts from, and which it refuses."""

import numpy as np
import pytest
import torch
from selmix_digits import Looks, digits, measure, train
from support import TinyNet
from torch import nn

from ltbench.data import LongTailDataModule
from ltbench.data.protocols import ReleasedProtocol
from ltbench.errors import UserError
from ltbench.methods.parts.stages import Trained


def test_a_plain_state_dict_is_a_start(start, tmp_path):
    state = torch.load(start / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    torch.save(weights, tmp_path / "weights.pt")
    looks = Looks()
    plain = Trained(str(tmp_path / "weights.pt"), backbone="tiny_net")
    model, _ = train(start, epochs=1, callbacks=[looks], init_from=plain)
    first = looks.nets[0].state_dict()
    assert all(torch.equal(first[name], value) for name, value in weights.items())
    assert model.lineage[0]["role"] == "init_from"
    assert "sha256" in model.lineage[0]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"init_from": None}, {}, "init_from"),
        ({"objective": "recall"}, {}, "objective"),
        ({"cycle": 0}, {}, "cycle 0"),
        ({"init_from": Trained("nowhere")}, {}, "nowhere"),
        ({}, {"protocol": ReleasedProtocol(40, 20, 60, 20, 0)}, "validation images"),
        ({}, {"protocol": ReleasedProtocol(40, 20, 60, 20, 19)}, None),
        ({}, {"protocol": ReleasedProtocol(41, 20, 60, 20, 20)}, "init_from"),
    ],
)
def test_what_cannot_start_is_refused(start, options, data, message):
    if message is None:
        train(start, digits(**data), epochs=1, **options)
        return
    with pytest.raises(UserError, match=message):
        train(start, digits(**data), **options)


def test_validation_images_of_every_class_are_needed(start):
    data = digits()
    data.setup()
    val = data.splits["val"]
    kept = val.labels != 4
    data.splits["val"] = type(val)(val.part, val.indices[kept], val.labels[kept])
    with pytest.raises(UserError, match="class 4"):
        train(start, data)


def test_an_objective_at_its_optimum_is_said_to_be(start):
    data = digits()
    data.setup()
    net = TinyNet(10, 1)
    looks = Looks()
    train(start, data, epochs=1, callbacks=[looks])
    # Validate on images that the start predicts right, as many of each class.
    labels, predictions, _ = measure(looks.nets[0], data, "val")
    val, right = data.splits["val"], (labels == predictions).numpy()
    rows = np.concatenate([np.flatnonzero(right & (val.labels == c))[:3] for c in range(10)])
    assert len(net.get_classifier().weight) == 10
    again = digits()
    again.setup()
    again.splits["val"] = type(val)(val.part, val.indices[rows], val.labels[rows])
    with pytest.raises(UserError, match="min_recall"):
        train(start, again, count_smoothing=0.0)


def test_other_starts_are_refused(start, tmp_path):
    torch.save(TinyNet(7, 1).state_dict(), tmp_path / "seven.pt")
    seven = Trained(str(tmp_path / "seven.pt"), backbone="tiny_net")
    with pytest.raises(UserError, match="seven"):
        train(start, init_from=seven)
    cosine = TinyNet(10, 1)
    cosine.fc = nn.Linear(64, 10, bias=False)
    torch.save(cosine.state_dict(), tmp_path / "cosine.pt")
    with pytest.raises(UserError, match="head: linear"):
        train(
            start,
            init_from=Trained(str(tmp_path / "cosine.pt"), backbone="tiny_net", head="cosine"),
        )
    torch.save(TinyNet(10, 1).state_dict(), tmp_path / "ten.pt")
    plain = Trained(str(tmp_path / "ten.pt"), backbone="tiny_net")
    data = LongTailDataModule("digits", imbalance_factor=5, val_fraction=0.3)
    with pytest.raises(UserError, match="partners"):
        train(start, data, partners="unlabelled", init_from=plain)


def test_features_that_are_not_finite_are_named(start, tmp_path):
    weights = TinyNet(10, 1)
    weights.conv.weight.data.fill_(torch.nan)
    torch.save(weights.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(UserError, match="features"):
        train(start, init_from=Trained(str(tmp_path / "nan.pt"), backbone="tiny_net"))

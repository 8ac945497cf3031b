"""What a run predicts is kept whole, in order, for the validation and the test images."""

import numpy as np
import pytest
import torch

from ltbench import records
from ltbench.records import Predictions
from ltbench.runs.callbacks import predictions


@pytest.mark.parametrize("selection", ["last", "best"])
@pytest.mark.parametrize(("split", "stem"), [("test", "predictions"), ("val", "val_predictions")])
def test_predictions_are_of_each_image_once_in_order(digits_run, selection, split, stem):
    record = records.read_record(digits_run.folder / "record.json")
    path = digits_run.folder / f"{stem}_{selection}.npz"
    with np.load(path, allow_pickle=False) as stored:
        index, images = stored["index"], record["data"]["images"][split]
        assert stored["logits"].shape == (images, 10)
        assert len(np.unique(index)) == images
        assert (np.diff(index) > 0).all()
        hits = stored["label"] == stored["prediction"]
    assert record["metrics"][selection][split]["accuracy"] == hits.mean()


@pytest.mark.parametrize(("images", "names"), [(2, {"logits"}), (3, set())])
def test_logits_of_too_many_are_not_even_collected(images, names, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "MAX_LOGITS", 4)
    logits = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    batch = {"index": torch.tensor([7, 4]), "label": torch.tensor([1, 1])}
    columns_of = predictions.predicted(batch, {"": logits, "cls": logits.flip(1)}, images)
    always = {"index", "label", "prediction", "confidence"}
    assert columns_of.keys() == always | {"cls"} | names
    columns = {name: value.numpy() for name, value in columns_of.items()}
    path, heads = tmp_path / "predictions_last.npz", {"cls": columns.pop("cls")}
    Predictions(**columns, heads=heads).write(path)
    assert Predictions.read(path).heads["cls"].tolist() == [0, 1]
    with np.load(path, allow_pickle=False) as stored:
        assert stored.keys() == always | {"prediction_cls"} | names
        assert stored["index"].tolist() == [4, 7]
        assert stored["prediction"].tolist() == [1, 0]
        assert stored["prediction_cls"].tolist() == [0, 1]
        assert stored["confidence"] == pytest.approx(1 / (1 + np.exp(-2)))


def test_equal_confidences_do_not_change_the_prediction():
    """Softmax in single precision cannot tell these two apart; the metrics can."""
    logits = torch.tensor([[0.0, 90.0, 90.000008]])
    batch = {"index": torch.tensor([0]), "label": torch.tensor([2])}
    assert predictions.predicted(batch, {"": logits}, 1)["prediction"].tolist() == [2]

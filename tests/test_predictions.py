"""What a run predicts is kept whole, in order, for the validation and the test images."""

import numpy as np
import pytest
import torch

from ltbench import predictions, records
from ltbench.predictions import KeepPredictions


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


def test_logits_of_too_many_are_left_out(tmp_path, monkeypatch):
    writer = KeepPredictions(tmp_path)
    writer.selection = "last"
    logits = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    columns = {"index": torch.tensor([7, 4]), "label": torch.tensor([1, 1]), "": logits}
    for kept, names in ((4, {"logits"}), (3, set())):
        monkeypatch.setattr(predictions, "LOGITS_KEPT", kept)
        writer.save_predictions("test", {**columns, "cls": logits.flip(1)})
        with np.load(tmp_path / "predictions_last.npz", allow_pickle=False) as stored:
            always = {"index", "label", "prediction", "confidence", "prediction_cls"}
            assert stored.keys() == always | names
            assert stored["index"].tolist() == [4, 7]
            assert stored["prediction"].tolist() == [1, 0]
            assert stored["prediction_cls"].tolist() == [0, 1]
            assert stored["confidence"] == pytest.approx(1 / (1 + np.exp(-2)))

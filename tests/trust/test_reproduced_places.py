"""What a stranger's record may have `bench reproduce` write, and where."""

from pathlib import Path

import pytest

from ltbench.bench.run.reproduce import _alone
from ltbench.errors import UserError

CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.mark.parametrize(
    "trainer",
    [
        {"callbacks": [{"class_path": CHECKPOINT, "init_args": {"dirpath": ".git"}}]},
        {"callbacks": [{"class_path": CHECKPOINT, "init_args": {"filename": "HEAD"}}]},
        {"callbacks": [{"class_path": CHECKPOINT, "init_args": {"monitor": "../x"}}]},
        {"callbacks": {"class_path": CHECKPOINT, "init_args": {"dirpath": "/tmp"}}},
        {"strategy": {"class_path": "DeepSpeedStrategy", "init_args": {"config": "passwd"}}},
        {"plugins": [{"class_path": "X", "init_args": {"checkpoint_dir": "here"}}]},
    ],
)
def test_a_record_that_names_a_place_to_write_to_is_refused(trainer):
    with pytest.raises(UserError, match="record"):
        _alone({"trainer": trainer}, Path("record.json"))


def test_what_names_no_place_is_kept():
    callbacks = [{"class_path": CHECKPOINT, "init_args": {"monitor": "val_loss", "dirpath": None}}]
    trainer = {"callbacks": callbacks, "strategy": "ddp", "max_epochs": 3}
    kept = _alone({"trainer": {**trainer, "logger": {"save_dir": "/"}}}, Path("record.json"))
    assert kept == {"trainer": trainer}

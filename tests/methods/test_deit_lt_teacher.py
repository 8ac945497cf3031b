"""DeiT-LT: the teacher is frozen, measured, and checked before training."""

from pathlib import Path

import pytest
import torch
from deit_digits import STUDENT, build, fit, train
from lightning.pytorch.callbacks import Callback
from support import weights

from ltbench import records
from ltbench.errors import UserError
from ltbench.methods.parts import stages
from ltbench.methods.parts.stages import Trained


def test_the_teacher_is_no_part_of_what_is_trained(teacher):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.teacher.network.training)

    model, data = build(teacher=teacher, ema_decay=0.9)
    fit(model, data, callbacks=[Look()], epochs=2)
    assert not any(seen)
    names = set(model.state_dict()) | {name for name, _ in model.named_parameters()}
    assert not any("teacher" in name for name in names)
    fresh = stages.load(teacher, 10, 1, role="teacher").network
    for ours, theirs in zip(
        model.teacher.network.state_dict().values(), fresh.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_teacher_is_measured_before_the_student_starts(teacher, digits_run):
    model, data = build(teacher=teacher)
    with pytest.raises(ZeroDivisionError):
        fit(model, data, callbacks=[Stop()])
    (lineage,) = model.lineage
    assert lineage["role"] == "teacher"
    record = records.read_record(digits_run.folder / "record.json")
    tested = record["metrics"]["last"]["test"]
    for name, value in lineage["metrics"]["test"].items():
        expected = float("nan") if tested[name] is None else tested[name]
        assert value == pytest.approx(expected, nan_ok=True), name
    assert lineage["metrics"]["val"]["accuracy"] > 0.2


class Stop(Callback):
    def on_train_start(self, *args):
        raise ZeroDivisionError


def test_a_plain_state_dict_is_a_teacher_too(teacher, digits_run, tmp_path):
    state = stages.load(teacher, 10, 1, role="teacher").network.state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "plain.pth")
    plain = Trained(str(tmp_path / "plain.pth"), backbone="tiny_net")
    one, _ = train(teacher=teacher)
    two, _ = train(teacher=plain)
    assert torch.equal(weights(one), weights(two))


def unsafe(path):
    torch.save({"a": Path()}, path)
    return {"path": str(path), "backbone": "tiny_net"}


def too_many_classes(path):
    torch.save(stages.build_backbone("tiny_net", 11, 1).state_dict(), path)
    return {"path": str(path), "backbone": "tiny_net"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: {"path": str(path)}, "no trained network"),
        (unsafe, "safely"),
        (too_many_classes, "does not fit"),
    ],
    ids=["missing", "unsafe", "classes"],
)
def test_teachers_that_cannot_be_are_refused_before_training(tmp_path, make, message):
    model, data = build(teacher=Trained(**make(tmp_path / "teacher.pth")))
    with pytest.raises(UserError, match=message):
        fit(model, data)


def test_a_teacher_of_another_image_size_is_refused(teacher, tmp_path):
    large = {**STUDENT["backbone_args"], "img_size": 16}
    model, data = build(teacher=teacher, backbone_args=large)
    with pytest.raises(UserError, match="teacher_size: 8"):
        fit(model, data)
    path, vit = tmp_path / "vit.pth", STUDENT["backbone"]
    torch.save(stages.build_backbone(vit, 10, 1, **large).state_dict(), path)
    teacher = Trained(str(path), backbone=vit, backbone_args=large)
    model, data = build(teacher=teacher)
    with pytest.raises(UserError, match="teacher_size"):
        fit(model, data)

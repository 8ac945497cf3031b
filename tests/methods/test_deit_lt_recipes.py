"""DeiT-LT's options and shipped configs: the constants of the paper."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from deit_digits import STUDENT, build, train

from ltbench import records
from ltbench.data.sources.files import IMAGENET_MEAN
from ltbench.data.transforms.randaugment import RandAugment
from ltbench.errors import UserError
from ltbench.methods.deit_lt.method import DeiTLT
from ltbench.methods.erm import Reweighting
from ltbench.optim.schedules import DeiTCosine, epoch_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "tiny_net", "backbone_args": {}}, "tiny_net"),
        ({"alpha": 1.5}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"smoothing": 2.0}, "smoothing"),
        ({"micro_batch": 0}, "micro_batch"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_only_what_a_run_does_is_recorded_as_a_deviation(teacher):
    plain, _ = train(teacher=teacher, trainer={"limit_train_batches": 1})
    assert [text.split()[0] for text in plain.deviations] == ["The", "Images"]
    plain.data.source.mean = IMAGENET_MEAN
    assert [text.split()[0] for text in plain.deviations] == ["The"]
    options = {"backbone_args": {**STUDENT["backbone_args"], "img_size": 16}, "teacher_size": 8}
    options |= {"reweighting": Reweighting(), "data": {"augment": [RandAugment()]}}
    other, _ = train(teacher=teacher, trainer={"limit_train_batches": 1}, **options)
    assert list(other.deviations) == list(DeiTLT.paper.deviations)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("rate", "epochs", "drw", "steps", "expected"),
    [
        (2.5e-4, 1200, 1100, 12, [1e-6, 5.08e-5, 1.255e-4, 2.499897e-4, 1.3e-4, 1.408890e-5]),
        (5e-4, 1400, 1200, 57, [1e-6, 1.008e-4, None, 4.999846e-4, 2.55e-4, 3.426263e-5]),
        (5e-4, 1000, 900, 214, [1e-6, None, None, None, None, 2.199115e-5]),
    ],
    ids=["cifar", "imagenet", "inat"],
)
def test_learning_rates_of_the_paper(rate, epochs, drw, steps, expected):
    schedule = DeiTCosine(5 / epochs, start=1e-6 / rate, floor=1e-5 / rate)
    for epoch, value in zip((0, 1, 2.5, 5, epochs / 2, drw), expected, strict=True):
        found = rate * schedule.factor(round(epoch * steps), epochs * steps)
        assert value is None or found == pytest.approx(value, rel=1e-6), epoch
    if steps == 57:  # t = 2.5 falls between two steps
        around = [rate * schedule.factor(step, epochs * steps) for step in (142, 143)]
        assert np.mean(around) == pytest.approx(2.505e-4)


CONFIGS = Path(__file__).parents[2] / "configs"


RECIPES = ("deitlt_cifar10", "deitlt_cifar100", "deitlt_imagenetlt", "deitlt_inat")


OURS = (*RECIPES, "deitlt_tiny_cifar10", "deit_tiny_cifar10")


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", OURS)
def test_a_shipped_config_runs(name, ltbench, tmp_path, digits_run):
    """On digits, with a student of no size; the recipe is otherwise as it is shipped."""
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    options = {
        "data.source": "digits",
        "data.imbalance_factor": 10,
        "data.largest": 60,
        "data.profile": "exp",
        "data.batch_size": 16,
        "model.backbone": "deit_tiny_distilled_patch4_32",
        "model.backbone_args": small,
        "trainer.max_epochs": 2,
        "trainer.limit_train_batches": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
    }
    if name in RECIPES:
        options["model.micro_batch"] = 8
    if "decoding" in read(name)["data"]["init_args"]:
        options |= {"data.decoding": "null", "data.image_size": "null"}
    if name != "deit_tiny_cifar10":
        options |= {"model.teacher.path": digits_run.folder, "model.teacher_size": 8}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = ltbench("fit", "--config", CONFIGS / f"{name}.yaml", *words)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert (record["status"], record["name"], record["steps"]) == ("done", name, 4)


@pytest.mark.paper
@pytest.mark.parametrize(
    ("name", "epochs", "drw", "rate", "batch", "teacher_size", "mixed"),
    [
        ("deitlt_cifar10", 1200, 1100, 2.5e-4, 1024, 32, False),
        ("deitlt_cifar100", 1200, 1100, 2.5e-4, 1024, 32, False),
        ("deitlt_imagenetlt", 1400, 1200, 5e-4, 2048, None, True),
        ("deitlt_inat", 1000, 900, 5e-4, 2048, None, True),
    ],
)
def test_recipes_have_the_constants_of_the_paper(
    name, epochs, drw, rate, batch, teacher_size, mixed
):
    config = read(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == epochs
    assert (model["backbone"], model["backbone_args"]) == (
        "deit_base_distilled_patch16_224",
        {"drop_path_rate": 0.1},
    )
    assert (data["batch_size"], model["micro_batch"]) == (batch, 128)
    rates = model["optimizer"]["init_args"]
    assert rates == {"lr": rate, "weight_decay": 0.05}
    assert rate == 5e-4 * (batch / 4) / 512  # the published rule leaves accumulation out
    assert model["decay_norms"] is False
    assert epoch_of(model["reweighting"]["start"], epochs) == drw
    assert model["reweighting"]["beta"] == 0.9999
    schedule = DeiTCosine(**model["lr_schedule"]["init_args"])
    assert epoch_of(schedule.warmup, epochs) == 5
    assert rate * schedule.start == pytest.approx(1e-6)
    assert rate * schedule.floor == pytest.approx(1e-5)
    assert (model["alpha"], model["distillation"]) == (0.5, "hard")
    assert (model["mixup"], model["cutmix"], model["smoothing"]) == (0.8, 1.0, 0.1)
    assert (model["mix_in_drw"], model.get("teacher_size")) == (mixed, teacher_size)
    assert data["sampler"] == "repeated"
    crop = data["decoding"]["random_crop"] if mixed else None
    assert crop in (None, [0.08, 1.0])
    kinds = [transform["class_path"] for transform in data["augment"]]
    assert kinds[-3:] == ["HorizontalFlip", "RandAugment", "RandomErasing"]
    assert (kinds[0] == "RandomResizedCrop") == (crop is None)


def test_the_pair_with_and_without_distillation_differs_in_the_teacher_alone():
    with_teacher, without = read("deitlt_tiny_cifar10"), read("deit_tiny_cifar10")
    assert with_teacher["model"]["init_args"].pop("teacher") == {"path": "runs/teacher"}
    assert with_teacher == without

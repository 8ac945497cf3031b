"""Bad checkpoints, starts, predictions, and runs to analyse."""

import os
import pickle

import numpy as np
import torch
from bad_case import Case, arrays, changed, cut
from bad_suites import vast

BAD = "bad.ckpt"


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("trace",)


def saved(content):
    return lambda path: torch.save(content, path)


def edited(change):
    """A copy of the run's last checkpoint, changed."""

    def edit(path):
        found = torch.load(path.parent / "run/checkpoints/last.ckpt", weights_only=True)
        change(found)
        torch.save(found, path)

    return edit


def progress(checkpoint):
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]


def half_done(checkpoint):
    """Let a checkpoint be that of an earlier epoch."""
    progress(checkpoint).update(ready=2, started=2, processed=2, completed=1)


def groups(checkpoint):
    return checkpoint["optimizer_states"][0]["param_groups"]


CHECKPOINTS = {
    "missing": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt", ("bad.ckpt", "there is no checkpoint")
    ),
    "not given": Case("test --config tiny.yaml", ("a run keeps checkpoints",)),
    "a folder": Case(
        "validate --config tiny.yaml --ckpt_path run", ("run", "there is no checkpoint")
    ),
    "empty": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "cannot be loaded safely as a"),
        {BAD: b""},
    ),
    "cut off": Case(
        "test --config tiny.yaml --ckpt_path {last}",
        ("run/checkpoints/last.ckpt", "cannot be loaded safely as a"),
        {"run/checkpoints/last.ckpt": cut},
    ),
    "a pickle that runs": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "cannot be loaded safely as a"),
        {BAD: pickle.dumps({"state_dict": Evil()})},
    ),
    "a zip that runs": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "cannot be loaded safely as a"),
        {BAD: saved({"state_dict": Evil()})},
    ),
    "weights alone": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "is no ltbench checkpoint"),
        {BAD: edited(lambda c: [c.pop(k) for k in list(c) if k != "state_dict"])},
    ),
    "no weights": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "is no whole ltbench checkpoint"),
        {BAD: edited(lambda c: c.pop("state_dict"))},
    ),
    "a weight missing": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("net.fc.bias", "does not fit the model"),
        {BAD: edited(lambda c: c["state_dict"].pop("net.fc.bias"))},
    ),
    "a weight of another shape": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("net.fc.bias", "does not fit the model"),
        {BAD: edited(lambda c: c["state_dict"].update({"net.fc.bias": torch.zeros(3)}))},
    ),
    "no optimizer to go on with": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "is no whole ltbench checkpoint"),
        {BAD: edited(lambda c: c.pop("optimizer_states"))},
    ),
    "arguments that are no mapping": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "is no whole ltbench checkpoint"),
        {BAD: edited(lambda c: c.update(ltbench_model=3))},
    ),
    "data that is no mapping": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "is no whole ltbench checkpoint"),
        {BAD: edited(lambda c: c.update(ltbench_data=[1]))},
    ),
    "weights without names": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "weights or classes lack a name"),
        {BAD: edited(lambda c: c.update(state_dict={1: torch.zeros(2)}))},
    ),
    "classes that are a number": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "weights or classes lack a name"),
        {BAD: edited(lambda c: c["ltbench_data"].update(class_names=3))},
    ),
    "a version that is none": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt", "it has no 'pytorch-lightning_version'"),
        {BAD: edited(lambda c: c.update({"pytorch-lightning_version": 3}))},
    ),
    "trained to the end": Case(
        "{fit} --ckpt_path {last}", ("has been trained to the end", "ltbench test")
    ),
    "of a shorter training": Case(
        "{fit} --ckpt_path {last} --trainer.max_epochs 6", ("belongs to run", "makes another one")
    ),
    "of a longer training": Case(
        "{fit} --ckpt_path {last} --trainer.max_epochs 2", ("belongs to run",)
    ),
    "from the middle of an epoch": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "in the middle of an epoch"),
        {BAD: edited(lambda c: progress(c).update(processed=2))},
    ),
    "no progress": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "lacks a part", "--fresh true"),
        {BAD: edited(lambda c: c.update(loops={"fit_loop": 3}))},
    ),
    "no state of an optimizer": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "lacks a part"),
        {BAD: edited(lambda c: c.update(optimizer_states=[]))},
    ),
    "no curves": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "lacks a part"),
        {BAD: edited(lambda c: c["callbacks"]["RunRecord"].pop("history"))},
    ),
    "an optimizer that is a number": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("cannot go on from bad.ckpt", "--fresh true"),
        {BAD: edited(lambda c: [half_done(c), c.update(optimizer_states=[3])])},
    ),
    "an optimizer with other groups": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("cannot go on from bad.ckpt", "parameter groups"),
        {BAD: edited(lambda c: [half_done(c), groups(c).append({})])},
    ),
    "another loss": Case(
        "test --config tiny.yaml --ckpt_path {last} --model.loss focal_loss",
        ("focal_loss", "the checkpoint was trained with another"),
    ),
    "no validation split": Case(
        "validate --config tiny.yaml --ckpt_path {last} --data.val_fraction 0",
        ("data.val_fraction", "there is no validation split"),
    ),
}
PREDICT = "predict --config tiny.yaml --ckpt_path {last} --data.predict_folder "
PREDICTIONS = {
    "no folder": Case(
        "predict --config tiny.yaml --ckpt_path {last}",
        ("--data.predict_folder DIR",),
    ),
    "empty folder": Case(
        PREDICT + "empty",
        ("empty", "there are no images below"),
        {"empty": lambda p: p.mkdir()},
    ),
    "an unreadable image": Case(
        PREDICT + "images",
        ("images/bad.png", "cannot read the image"),
        {"images/bad.png": b"x"},
    ),
    "only unreadable images": Case(
        PREDICT + "new --data.on_bad_image skip",
        ("new", "there are no images below"),
        {"new/bad.png": b"x"},
    ),
    "a folder as output": Case(
        PREDICT + "images --output images", ("images", "name a file to write")
    ),
    "output below a file": Case(
        PREDICT + "images --output tiny.yaml/rows.csv", ("tiny.yaml/rows.csv", "Name another place")
    ),
    "output where nothing can be": Case(
        PREDICT + "images --output /proc/rows.csv",
        ("/proc/rows.csv", "right place"),
    ),
}
STARTS = {
    "missing": Case(
        "{semi} --model SelMix --model.init_from.path nowhere",
        ("nowhere", "there is no trained network"),
    ),
    "other images": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("config", "from was trained on other images"),
    ),
    "unfinished": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run", "is not finished"),
        {"run/record.json": changed(status="running")},
    ),
    "a record of a newer ltbench": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run/record.json", "this ltbench reads"),
        {"run/record.json": changed(schema=99)},
    ),
    "a record that is cut off": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run/record.json", "is no readable run record"),
        {"run/record.json": cut},
    ),
    "damaged": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run/checkpoints/last.ckpt", "cannot be loaded safely as a"),
        {"run/checkpoints/last.ckpt": cut},
    ),
    "a pickle that runs": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt", "cannot be loaded safely as a"),
        {BAD: saved({"w": Evil()})},
    ),
    "weights of nothing known": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt", "say which timm backbone it is"),
        {BAD: saved({"w": torch.zeros(2)})},
    ),
    "a network that is not named": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt", "does not say which network"),
        {BAD: edited(lambda c: c["ltbench_network"].pop("name"))},
    ),
    "a network that is a number": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt", "does not say which network"),
        {BAD: edited(lambda c: c.update(ltbench_network=3))},
    ),
    "a network that loads a file": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("checkpoint_path is not taken",),
        {BAD: edited(lambda c: c["ltbench_network"].update(checkpoint_path="evil.pth"))},
    ),
    "weights that are a list": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt", "holds no weights by name"),
        {BAD: edited(lambda c: c.update(state_dict=[1]))},
    ),
    "numbers for weights": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt --model.init_from.backbone tiny_net",
        ("backbone", "ckpt does not fit its"),
        {BAD: saved({"w": 3})},
    ),
}
RUN = "analyze confusion --run run"
STORED = "run/predictions_last.npz"
ANALYSES = {
    "unknown": Case("analyze hesian --run run", ("hesian", "Did you mean 'hessian'?")),
    "no run": Case("analyze features", ("one of the two",)),
    "missing run": Case("analyze features --run nowhere", ("nowhere", "there is no checkpoint")),
    "run is a file": Case(
        "analyze features --run tiny.yaml", ("tiny.yaml", "there is no checkpoint")
    ),
    "both": Case(
        "analyze features --run run --ckpt_path {last}", ("--ckpt_path", "one of the two")
    ),
    "no config": Case(
        "analyze features --run run",
        ("run/config.yaml", "there is no config"),
        {"run/config.yaml": None},
    ),
    "broken config": Case(
        "analyze features --run run --device cpu",
        ("run/config.yaml", "while parsing a flow sequence in"),
        {"run/config.yaml": "a: [1"},
    ),
    "damaged weights": Case(
        "analyze features --run run --device cpu",
        ("run/checkpoints/last.ckpt", "cannot be loaded safely as a"),
        {"run/checkpoints/last.ckpt": cut},
    ),
    "a split": Case(
        "analyze features --run run --split tset --device cpu", ("split", "Did you mean 'test'?")
    ),
    "a device": Case(
        "analyze features --run run --device nowhere", ("--device", "nowhere cannot be used here")
    ),
    "a device that is not there": Case(
        "analyze features --run run --device cuda:9",
        ("--device", "NVIDIA GPU and installed a driver"),
    ),
    "a class": Case(
        "analyze hessian --run run --classes zebra --steps 2 --runs 1 --device cpu",
        ("zebra", "unknown class"),
    ),
    "no steps": Case("analyze hessian --run run --steps 0", ("--steps", "is no whole number from")),
    "steps in words": Case(
        "analyze hessian --run run --steps many", ("--steps", "is no whole number from")
    ),
    "an option": Case("analyze hessian --run run --step 3", ("--step", "Did you mean '--steps'?")),
    "a data option": Case(
        "analyze features --run run --data.batchsize 3 --device cpu",
        ("batchsize", "Did you mean 'batch_size'?"),
    ),
    "attention of a cnn": Case(
        "analyze attention --run run --device cpu",
        ("attention", "between a class token and patches"),
    ),
    "agreement without teacher": Case(
        "analyze agreement --run run --device cpu", ("run", "ERM has no teacher and student")
    ),
    "beside a run without a result": Case(
        "analyze hessian --run run --beside nowhere --steps 2 --runs 1 --images 4 --device cpu",
        ("nowhere", "run 'ltbench analyze hessian' on that network"),
    ),
    "output is a file": Case(f"{RUN} --output tiny.yaml", ("confusion", "json cannot be written")),
    "record cut off": Case(
        RUN, ("run/record.json", "is no readable run record"), {"run/record.json": cut}
    ),
    "record of a list": Case(
        RUN, ("run/record.json", "list indices must be integers or"), {"run/record.json": "[]"}
    ),
    "record without data": Case(
        RUN, ("run/record.json", "npz is damaged"), {"run/record.json": changed(data=None)}
    ),
    "predictions cut off": Case(
        RUN, ("run/predictions_last.npz", "File is not a zip file"), {STORED: cut}
    ),
    "predictions as text": Case(
        RUN, ("run/predictions_last.npz", "can load it unsafely using the"), {STORED: "hello"}
    ),
    "predictions without confidence": Case(
        "analyze calibration --run run",
        ("run/predictions_last.npz", "confidence is not a file in"),
        {STORED: arrays(confidence=None)},
    ),
    "predictions that run": Case(
        RUN,
        ("run/predictions_last.npz", "Object arrays cannot be loaded when"),
        {STORED: arrays(label=np.array([Evil()], dtype=object))},
    ),
    "predictions of more than memory holds": Case(RUN, (STORED, "is damaged"), {STORED: vast}),
    "confidences above 1": Case(
        "analyze calibration --run run",
        (STORED, "a confidence is not in [0, 1]"),
        {STORED: arrays(confidence=np.full(400, 9.0))},
    ),
    "confidences that are nan": Case(
        "analyze calibration --run run",
        (STORED, "a confidence is not in [0, 1]"),
        {STORED: arrays(confidence=np.full(400, np.nan))},
    ),
    "predictions of other lengths": Case(
        RUN,
        ("run/predictions_last.npz", "does not fit the"),
        {STORED: arrays(prediction=np.zeros(3, int))},
    ),
    "labels beyond the classes": Case(
        RUN,
        ("run/predictions_last.npz", "does not fit the"),
        {
            STORED: arrays(
                label=np.full(360, 77), prediction=np.full(360, 77), confidence=np.ones(360)
            )
        },
    ),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "checkpoint": CHECKPOINTS,
        "predict": PREDICTIONS,
        "start": STARTS,
        "analyze": ANALYSES,
    }.items()
    for name, case in cases.items()
}

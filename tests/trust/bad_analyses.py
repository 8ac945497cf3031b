"""Bad runs to analyse, and bad predictions of theirs."""

import numpy as np
from bad_case import Case, Evil, arrays, changed, cut
from bad_suites import vast

RUN = "analyze confusion --run run"
STORED = "run/predictions_last.npz"
ANALYSES = {
    "unknown": Case("analyze hesian --run run", ("hesian", "Did you mean 'hessian'?")),
    "no run": Case("analyze features", ("--run", "--ckpt_path")),
    "missing run": Case("analyze features --run nowhere", ("nowhere/checkpoints/last.ckpt",)),
    "run is a file": Case("analyze features --run tiny.yaml", ("tiny.yaml/checkpoints/last.ckpt",)),
    "both": Case("analyze features --run run --ckpt_path {last}", ("--run", "--ckpt_path")),
    "no config": Case(
        "analyze features --run run",
        ("run/config.yaml", "--config"),
        {"run/config.yaml": None},
    ),
    "broken config": Case(
        "analyze features --run run --device cpu",
        ("run/config.yaml",),
        {"run/config.yaml": "a: [1"},
    ),
    "damaged weights": Case(
        "analyze features --run run --device cpu",
        ("run/checkpoints/last.ckpt",),
        {"run/checkpoints/last.ckpt": cut},
    ),
    "a split": Case(
        "analyze features --run run --split tset --device cpu", ("split", "Did you mean 'test'?")
    ),
    "a device": Case("analyze features --run run --device nowhere", ("device nowhere",)),
    "a device that is not there": Case(
        "analyze features --run run --device cuda:9",
        ("device cuda:9",),
    ),
    "a class": Case(
        "analyze hessian --run run --classes zebra --steps 2 --runs 1 --device cpu",
        ("unknown class 'zebra'",),
    ),
    "no steps": Case("analyze hessian --run run --steps 0", ("--steps", "'0'")),
    "steps in words": Case("analyze hessian --run run --steps many", ("--steps", "'many'")),
    "an option": Case("analyze hessian --run run --step 3", ("--step", "Did you mean '--steps'?")),
    "a data option": Case(
        "analyze features --run run --data.batchsize 3 --device cpu",
        ("batchsize", "Did you mean 'batch_size'?"),
    ),
    "attention of a cnn": Case(
        "analyze attention --run run --device cpu",
        ("attention", "TinyNet"),
    ),
    "agreement without teacher": Case(
        "analyze agreement --run run --device cpu", ("ERM", "DeiT-LT")
    ),
    "beside a run without a result": Case(
        "analyze hessian --run run --beside nowhere --steps 2 --runs 1 --images 4 --device cpu",
        ("nowhere", "ltbench analyze hessian"),
    ),
    "output is a file": Case(f"{RUN} --output tiny.yaml", ("tiny.yaml/confusion.json",)),
    "record cut off": Case(RUN, ("run/record.json",), {"run/record.json": cut}),
    "record of a list": Case(RUN, ("run/record.json",), {"run/record.json": "[]"}),
    "record without data": Case(
        RUN, ("run/record.json", "'data'"), {"run/record.json": changed(data=None)}
    ),
    "predictions cut off": Case(RUN, ("run/predictions_last.npz",), {STORED: cut}),
    "predictions as text": Case(RUN, ("run/predictions_last.npz",), {STORED: "hello"}),
    "predictions without confidence": Case(
        "analyze calibration --run run",
        ("run/predictions_last.npz", "'confidence'"),
        {STORED: arrays(confidence=None)},
    ),
    "predictions that run": Case(
        RUN,
        ("run/predictions_last.npz",),
        {STORED: arrays(label=np.array([Evil()], dtype=object))},
    ),
    "predictions of more than memory holds": Case(RUN, (STORED,), {STORED: vast}),
    "confidences above 1": Case(
        "analyze calibration --run run",
        (STORED, "confidence"),
        {STORED: arrays(confidence=np.full(400, 9.0))},
    ),
    "confidences that are nan": Case(
        "analyze calibration --run run",
        (STORED, "confidence"),
        {STORED: arrays(confidence=np.full(400, np.nan))},
    ),
    "predictions of other lengths": Case(
        RUN,
        ("run/predictions_last.npz",),
        {STORED: arrays(prediction=np.zeros(3, int))},
    ),
    "labels beyond the classes": Case(
        RUN,
        ("run/predictions_last.npz",),
        {
            STORED: arrays(
                label=np.full(360, 77), prediction=np.full(360, 77), confidence=np.ones(360)
            )
        },
    ),
}
CASES = {f"analyze: {name}": case for name, case in ANALYSES.items()}

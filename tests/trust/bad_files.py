"""Bad checkpoints, starts, records, predictions, suites, claims and names of things."""

import os
import pickle

import numpy as np
import torch
from bad_case import Case, arrays, changed, cut

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
        ("nowhere", "json is no readable result of"),
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
BOARDS = {
    "never run": Case("leaderboard suite", ("suite", "was not run in runs")),
    "a folder without runs": Case("leaderboard images", ("images", "there is no record")),
    "a damaged plan": Case(
        "leaderboard suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": "{"},
    ),
    "a plan of a list": Case(
        "leaderboard suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": "[]"},
    ),
    "metric": Case(
        "leaderboard run --by acuracy",
        ("acuracy", "Did you mean 'accuracy'?"),
        {"run/val_predictions_last.npz": None},
    ),
    "format": Case("leaderboard run --format pdf", ("--format", "ltbench leaderboard")),
    "ending": Case(
        "leaderboard run --output table.pdf", ("table.pdf", "its ending is none of txt")
    ),
    "output is a folder": Case(
        "leaderboard run --format html --output images", ("images", "name a file to write")
    ),
    "output below a file": Case(
        "leaderboard run --output tiny.yaml/table.html",
        ("tiny.yaml/table.html", "Name another place"),
    ),
    "no claims": Case(
        "leaderboard run --claims nowhere.yaml", ("nowhere.yaml", "there are no claims")
    ),
    "broken claims": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml", "while parsing a flow sequence in"),
        {"claims.yaml": "- {a: [1"},
    ),
    "empty claims": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml", "is no readable list of claims"),
        {"claims.yaml": ""},
    ),
    "claims of a mapping": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml", "string indices must be integers"),
        {"claims.yaml": "paper: x\n"},
    ),
    "claims of words": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml", "string indices must be integers"),
        {"claims.yaml": "- paper\n"},
    ),
    "a claim without a value": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml", "is no readable list of claims"),
        {"claims.yaml": "- {rows: {ce: {accuracy: high}}}\n"},
    ),
    "claims that are no text": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml", "is no readable list of claims"),
        {"claims.yaml": b"\xff\xfe"},
    ),
    "claims are a folder": Case(
        "leaderboard run --claims images", ("--claims", "there are no claims images")
    ),
    "nothing but damaged records": Case(
        "leaderboard run",
        ("run/record.json", "records below run can be used"),
        {"run/record.json": cut},
    ),
    "a record without metrics": Case(
        "leaderboard run",
        ("run/record.json", "records below run can be used"),
        {"run/record.json": changed(metrics=None)},
    ),
    "a newer record": Case(
        "leaderboard run --format json",
        ("run/record.json", "records below run can be used"),
        {"run/record.json": changed(schema=9)},
    ),
    "a schema in words": Case(
        "leaderboard run",
        ("run/record.json", "records below run can be used"),
        {"run/record.json": changed(schema="new")},
    ),
    "a record that is no text": Case(
        "leaderboard run",
        ("run/record.json", "records below run can be used"),
        {"run/record.json": b"\xff\xfe\x00"},
    ),
}
BENCH = "bench run suite.yaml"


def suite(text, *says, words=""):
    return Case(f"{BENCH} {words}", says, {"suite.yaml": text})


ROW = "rows: {ce: {config: tiny.yaml}}"
SUITES = {
    "no suite": Case("bench run", ("run", "the following arguments are required")),
    "missing": Case("bench run nowhere.yaml", ("nowhere.yaml", "there is no suite")),
    "unknown": Case("bench run cifar10_tl", ("cifar10_tl", "Did you mean 'cifar10_lt'?")),
    "an action": Case("bench runn smoke", ("runn", "Did you mean 'run'?")),
    "broken": suite("rows: {a: [1", "suite.yaml", "while parsing a flow sequence in"),
    "empty": suite("", "suite.yaml", "must be a mapping of names"),
    "no text": suite(b"\xff\xfe\x00", "suite.yaml", "codec can't decode byte"),
    "no rows": suite("seeds: [0]\n", "suite.yaml", "has no rows"),
    "rows of a list": suite("rows: [a]\n", "suite.yaml", "rows must be a mapping of"),
    "a row of nothing": suite("rows: {a: }\n", "suite.yaml", "must be a mapping of names"),
    "an unknown key": suite(f"seed: [0]\n{ROW}\n", "suite.yaml", "Did you mean 'seeds'?"),
    "an unknown key of a row": suite(
        "rows: {a: {conifg: tiny.yaml}}\n", "suite.yaml", "Did you mean 'config'?"
    ),
    "config and stages": suite(
        "rows: {a: {config: tiny.yaml, stages: {}}}\n",
        "suite.yaml",
        "needs either a config or stages",
    ),
    "no stages": suite(
        "rows: {a: {stages: {}}}\n", "suite.yaml", "needs either a config or stages"
    ),
    "a missing config": suite("rows: {a: {config: nowhere}}\n", "suite.yaml", "unknown config"),
    "a broken config": Case(
        BENCH, ("tiny.yaml", "while parsing a flow sequence in"), {"tiny.yaml": "a: [1"}
    ),
    "a config of a list": Case(
        BENCH, ("tiny.yaml", "must be a mapping of names"), {"tiny.yaml": "- a\n"}
    ),
    "a config that is a number": suite("rows: {a: {config: 3}}\n", "suite.yaml", "unknown config"),
    "seeds in words": suite(f"seeds: [a]\n{ROW}\n", "suite.yaml", "it must be a list of"),
    "no seeds": suite(f"seeds: []\n{ROW}\n", "suite.yaml", "it must be a list of"),
    "a negative seed": suite(f"seeds: [-1]\n{ROW}\n", "suite.yaml", "it must be a list of"),
    "a seed of a stage": suite(
        "rows: {a: {config: tiny.yaml, seed: x}}\n", "suite.yaml", "it must be a whole number"
    ),
    "overrides of a list": suite(
        f"overrides: [1]\n{ROW}\n", "suite.yaml", "overrides must be a mapping of"
    ),
    "overrides of a row": suite(
        "rows: {a: {config: tiny.yaml, overrides: 3}}\n",
        "suite.yaml",
        "overrides must be a mapping of",
    ),
    "a cycle": suite(
        "rows: {a: {stages: {x: {config: tiny.yaml, overrides: {model.p: '{y}'}}, "
        "y: {config: tiny.yaml, overrides: {model.p: '{x}'}}}}}\n",
        "stages",
        "need each other",
    ),
    "an unknown stage": suite(
        "rows: {a: {config: tiny.yaml, overrides: {model.p: '{b}'}}}\n", "unknown stage"
    ),
    "an unknown row": suite(f"{ROW}\n", "ce", "suite suite", words="--rows vs"),
    "seeds on the command line": suite(
        f"{ROW}\n", "--seeds", "is no list of seeds such", words="--seeds a,b"
    ),
    "no job at a time": suite(f"{ROW}\n", "--jobs", "is no whole number from", words="--jobs 0"),
    "an override without a value": suite(
        f"{ROW}\n", "--trainer.max_epochs", "as to ltbench fit", words="--trainer.max_epochs"
    ),
    "an override that is no yaml": suite(
        f"{ROW}\n", "cannot read the value", words="--trainer.max_epochs=["
    ),
    "a word": suite(f"{ROW}\n", "max_epochs", "as to ltbench fit", words="max_epochs 3"),
    "a row with a slash": suite(
        "rows: {a/b: {config: tiny.yaml}}\n", "suite.yaml", "its name is that of a"
    ),
    "a folder that is a file": suite(
        f"{ROW}\n", "tiny.yaml", "Is it the right place", words="--folder tiny.yaml"
    ),
    "a launcher": suite(f"{ROW}\n", "--launcher", "says what there is", words="--launcher cloud"),
    "status of what was not run": Case("bench status suite", ("suite", "was not run in runs")),
    "status of a damaged plan": Case(
        "bench status suite",
        ("runs/bench/suite.json", "writes it anew"),
        {"runs/bench/suite.json": '{"jobs": 3}'},
    ),
    "status of no text": Case(
        "bench status suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": b"\xff\xfe"},
    ),
    "nothing to reproduce": Case("bench reproduce abc", ("abc", "results with an id that starts")),
    "reproduce a folder without a record": Case(
        "bench reproduce images", ("images", "json is no readable run record")
    ),
    "reproduce a damaged record": Case(
        "bench reproduce run",
        ("run/record.json", "is no readable run record"),
        {"run/record.json": cut},
    ),
    "reproduce what is not done": Case(
        "bench reproduce run",
        ("run/record.json", "there is nothing to agree with"),
        {"run/record.json": changed(status="failed")},
    ),
    "reproduce a record without a config": Case(
        "bench reproduce run",
        ("run/record.json", "is no record of a run"),
        {"run/record.json": changed(config=None)},
    ),
    "reproduce a record without an id": Case(
        "bench reproduce run",
        ("run/record.json", "is no record of a run"),
        {"run/record.json": changed(job_id=None)},
    ),
    "reproduce a record without metrics": Case(
        "bench reproduce run",
        ("run/record.json", "is no record of a run"),
        {"run/record.json": changed(metrics=None)},
    ),
    "reproduce what starts from nothing": Case(
        "bench reproduce run",
        ("run/record.json", "then say where it lies with"),
        {"run/record.json": changed(lineage=[{"path": "gone.ckpt", "job_id": "1"}])},
    ),
    "tolerance": Case(
        "bench reproduce run --tolerance much", ("--tolerance", "ltbench bench reproduce")
    ),
}
NAMES = {
    "a command": Case("fti --config tiny.yaml", ("Did you mean 'fit'?",)),
    "a kind": Case("list method", ("method", "Did you mean 'methods'?")),
    "two kinds": Case("list methods configs", ("configs", "unrecognized arguments")),
    "an option of list": Case("list --jsn", ("--jsn", "unrecognized arguments")),
    "nothing to show": Case("show", ("the following arguments are required",)),
    "a name": Case("show emr", ("emr", "Did you mean 'erm'?")),
    "a file that is not there": Case("show nowhere.yaml", ("nowhere.yaml", "Did you mean 'erm'?")),
    "a folder": Case(
        "show dir.yaml", ("dir.yaml", "Did you mean 'deit_lt'?"), {"dir.yaml": lambda p: p.mkdir()}
    ),
    "a file that is no text": Case(
        "show bad.yaml", ("bad.yaml", "codec can't decode byte"), {"bad.yaml": b"\xff\xfe"}
    ),
    "data without a config": Case("data", ("A config has all that is",)),
    "data of a missing folder": Case(
        "data --config folder.yaml --data.root nowhere",
        ("nowhere", "there are no class folders in"),
    ),
    "a picture of another kind": Case(
        "data --config tiny.yaml --output tail.txt", ("--output", "its ending is none of avif")
    ),
    "a picture without an ending": Case(
        "data --config tiny.yaml --output tail", ("--output", "its ending is none of avif")
    ),
    "a picture that is a folder": Case(
        "data --config tiny.yaml --output images", ("images", "name a file to write")
    ),
    "a cost without a config": Case("fit --dry-run", ("A config has all that is",)),
    "a cost of a missing folder": Case(
        "{folder} --dry-run --data.root nowhere", ("nowhere", "there are no class folders in")
    ),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "checkpoint": CHECKPOINTS,
        "predict": PREDICTIONS,
        "start": STARTS,
        "analyze": ANALYSES,
        "leaderboard": BOARDS,
        "bench": SUITES,
        "name": NAMES,
    }.items()
    for name, case in cases.items()
}

"""Bad checkpoints, starts and folders to predict."""

import pickle

import torch
from bad_case import Case, Evil, changed, cut

BAD = "bad.ckpt"


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
    "missing": Case("test --config tiny.yaml --ckpt_path bad.ckpt", ("bad.ckpt",)),
    "not given": Case("test --config tiny.yaml", ("--ckpt_path",)),
    "a folder": Case("validate --config tiny.yaml --ckpt_path run", ("run",)),
    "empty": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: b""},
    ),
    "cut off": Case(
        "test --config tiny.yaml --ckpt_path {last}",
        ("run/checkpoints/last.ckpt",),
        {"run/checkpoints/last.ckpt": cut},
    ),
    "a pickle that runs": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: pickle.dumps({"state_dict": Evil()})},
    ),
    "a zip that runs": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: saved({"state_dict": Evil()})},
    ),
    "weights alone": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: [c.pop(k) for k in list(c) if k != "state_dict"])},
    ),
    "no weights": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.pop("state_dict"))},
    ),
    "a weight missing": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("net.fc.bias",),
        {BAD: edited(lambda c: c["state_dict"].pop("net.fc.bias"))},
    ),
    "a weight of another shape": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("net.fc.bias",),
        {BAD: edited(lambda c: c["state_dict"].update({"net.fc.bias": torch.zeros(3)}))},
    ),
    "no optimizer to go on with": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.pop("optimizer_states"))},
    ),
    "arguments that are no mapping": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update(ltbench_model=3))},
    ),
    "data that is no mapping": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update(ltbench_data=[1]))},
    ),
    "weights without names": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update(state_dict={1: torch.zeros(2)}))},
    ),
    "classes that are a number": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c["ltbench_data"].update(class_names=3))},
    ),
    "a version that is none": Case(
        "test --config tiny.yaml --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update({"pytorch-lightning_version": 3}))},
    ),
    "trained to the end": Case("{fit} --ckpt_path {last}", ("ltbench test",)),
    "of a shorter training": Case(
        "{fit} --ckpt_path {last} --trainer.max_epochs 6", ("belongs to run",)
    ),
    "of a longer training": Case(
        "{fit} --ckpt_path {last} --trainer.max_epochs 2", ("belongs to run",)
    ),
    "from the middle of an epoch": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: progress(c).update(processed=2))},
    ),
    "no progress": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "--fresh true"),
        {BAD: edited(lambda c: c.update(loops={"fit_loop": 3}))},
    ),
    "no state of an optimizer": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update(optimizer_states=[]))},
    ),
    "no curves": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c["callbacks"]["RunRecord"].pop("history"))},
    ),
    "an optimizer that is a number": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt", "--fresh true"),
        {BAD: edited(lambda c: [half_done(c), c.update(optimizer_states=[3])])},
    ),
    "an optimizer with other groups": Case(
        "{fit} --ckpt_path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: [half_done(c), groups(c).append({})])},
    ),
    "another loss": Case(
        "test --config tiny.yaml --ckpt_path {last} --model.loss focal_loss",
        ("focal_loss",),
    ),
    "no validation split": Case(
        "validate --config tiny.yaml --ckpt_path {last} --data.val_fraction 0",
        ("data.val_fraction",),
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
        ("empty",),
        {"empty": lambda p: p.mkdir()},
    ),
    "an unreadable image": Case(
        PREDICT + "images",
        ("images/bad.png",),
        {"images/bad.png": b"x"},
    ),
    "only unreadable images": Case(
        PREDICT + "new --data.on_bad_image skip",
        ("new",),
        {"new/bad.png": b"x"},
    ),
    "a folder as output": Case(PREDICT + "images --output images", ("images",)),
    "output below a file": Case(
        PREDICT + "images --output tiny.yaml/rows.csv", ("tiny.yaml/rows.csv",)
    ),
    "output where nothing can be": Case(
        PREDICT + "images --output /proc/rows.csv",
        ("/proc/rows.csv",),
    ),
}
STARTS = {
    "missing": Case(
        "{semi} --model SelMix --model.init_from.path nowhere",
        ("nowhere",),
    ),
    "other images": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("config",),
    ),
    "unfinished": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run",),
        {"run/record.json": changed(status="running")},
    ),
    "a record of a newer ltbench": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run/record.json",),
        {"run/record.json": changed(schema=99)},
    ),
    "a record that is cut off": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run/record.json",),
        {"run/record.json": cut},
    ),
    "damaged": Case(
        "{semi} --model SelMix --model.init_from.path run",
        ("run/checkpoints/last.ckpt",),
        {"run/checkpoints/last.ckpt": cut},
    ),
    "a pickle that runs": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt",),
        {BAD: saved({"w": Evil()})},
    ),
    "weights of nothing known": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt",),
        {BAD: saved({"w": torch.zeros(2)})},
    ),
    "a network that is not named": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c["ltbench_network"].pop("name"))},
    ),
    "a network that is a number": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update(ltbench_network=3))},
    ),
    "a network that loads a file": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("checkpoint_path is not taken",),
        {BAD: edited(lambda c: c["ltbench_network"].update(checkpoint_path="evil.pth"))},
    ),
    "weights that are a list": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt",
        ("bad.ckpt",),
        {BAD: edited(lambda c: c.update(state_dict=[1]))},
    ),
    "numbers for weights": Case(
        "{semi} --model SelMix --model.init_from.path bad.ckpt --model.init_from.backbone tiny_net",
        ("backbone",),
        {BAD: saved({"w": 3})},
    ),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "checkpoint": CHECKPOINTS,
        "predict": PREDICTIONS,
        "start": STARTS,
    }.items()
    for name, case in cases.items()
}

"""What makes two runs the same experiment: job ids and recipes."""

import copy

import pytest

from ltbench import records
from ltbench.records import canonical, identity, recipe, recorded_revisions, revisions

CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "ERM", "init_args": {"loss": "vs_loss", "clip_norm": None}},
    "data": {
        "class_path": "LongTailDataModule",
        "init_args": {"source": "digits", "root": None, "num_workers": 2, "batch_size": 32},
    },
    "trainer": {"max_epochs": 40, "precision": None, "default_root_dir": "runs", "logger": None},
}


def job_id(config, fingerprint="digits"):
    return records.job_id(config, fingerprint)


def changed(group, key, value):
    config = copy.deepcopy(CONFIG)
    (config[group].get("init_args") or config[group])[key] = value
    return config


def test_job_id_is_16_hex_digits_in_any_order_of_keys():
    assert len(job_id(CONFIG)) == 16
    assert int(job_id(CONFIG), 16) >= 0
    assert job_id(dict(reversed(CONFIG.items()))) == job_id(CONFIG)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("model", "loss", "ce"),
        ("model", "clip_norm", 1.0),
        ("data", "batch_size", 64),
        ("data", "source", "cifar10"),
        ("trainer", "max_epochs", 41),
        ("trainer", "precision", "bf16-mixed"),
    ],
)
def test_job_id_tells_experiments_apart(group, key, value):
    assert job_id(changed(group, key, value)) != job_id(CONFIG)


def test_job_id_tells_seeds_and_data_apart():
    assert job_id({**CONFIG, "seed_everything": 1}) != job_id(CONFIG)
    assert job_id(CONFIG, "other images") != job_id(CONFIG)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("data", "root", "/elsewhere"),
        ("data", "num_workers", 8),
        ("data", "predict_folder", "/new"),
        ("data", "eval_batch_size", 64),
        ("trainer", "default_root_dir", "/elsewhere"),
        ("trainer", "enable_progress_bar", False),
        ("trainer", "log_every_n_steps", 1),
    ],
)
def test_where_and_how_it_is_shown_makes_no_other_run_and_no_other_recipe(group, key, value):
    other = changed(group, key, value)
    assert job_id(other) == job_id(CONFIG)
    assert recipe({"config": other}) == recipe({"config": CONFIG})


def test_seeds_share_a_recipe_and_experiments_do_not():
    assert recipe({"config": {**CONFIG, "seed_everything": 1}}) == recipe({"config": CONFIG})
    assert recipe({"config": changed("model", "loss", "ce")}) != recipe({"config": CONFIG})


def test_our_classes_have_one_spelling_and_those_of_others_keep_theirs():
    crop = {"class_path": "ltbench.data.augment.RandomCrop", "init_args": {"padding": 4}}
    config = {"model": {"class_path": "their.Method"}, "data": {"augment": [crop]}}
    assert canonical(config) == {
        "model": {"class_path": "their.Method"},
        "data": {"augment": [{"class_path": "RandomCrop", "init_args": {"padding": 4}}]},
    }


OLD_AND_NEW = [
    ("model", {"class_path": "ltbench.methods.paco.PaCo", "init_args": {"queue": 9}}, "PaCo"),
    ("model", {"class_path": "CBGAN"}, "CBGAN"),
    ("augment", ["RandomCrop", "AutoAugment"], "AutoAugment"),
    ("augment", [{"class_path": "AutoAugment"}], "AutoAugment"),
    (
        "strong_augment",
        [{"class_path": "RandAugment", "init_args": {"space": "fixmatch"}}],
        "RandAugment",
    ),
    ("views", {"key": [{"class_path": "AutoAugment", "init_args": {}}]}, "AutoAugment"),
    ("lr_schedule", {"class_path": "Cosine", "init_args": {"warmup": 3}}, "Cosine"),
]


def with_part(name, part):
    config = copy.deepcopy(CONFIG)
    if name == "model":
        config["model"] = part
    else:
        config["model" if name == "lr_schedule" else "data"]["init_args"][name] = part
    return config


@pytest.mark.parametrize(("name", "part", "revised"), OLD_AND_NEW)
def test_a_mended_recipe_makes_another_run_of_the_same_config(name, part, revised, monkeypatch):
    config = with_part(name, part)
    assert list(revisions(config)) == [revised]
    record = {"config": config, "revisions": revisions(config)}
    new = (job_id(config), recipe(record))
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_REVISED", {})
        old = (job_id(config), recipe({"config": config}))
    assert recipe({"config": config}) == old[1]  # an old record's, today
    assert len({*old, *new}) == 4
    monkeypatch.setitem(identity._REVISED, revised, identity._REVISED[revised]._replace(number=9))
    assert job_id(config) not in (old[0], new[0])
    assert recipe(record) == new[1]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("augment", [{"class_path": "RandAugment", "init_args": {"space": "standard"}}]),
        ("augment", ["their.AutoAugment"]),
        ("model", {"class_path": "their.PaCo"}),
        ("lr_schedule", "Cosine"),
        ("lr_schedule", {"class_path": "Cosine", "init_args": {"warmup": 0}}),
    ],
)
def test_other_configs_keep_their_identity(name, part, monkeypatch):
    config = with_part(name, part)
    assert revisions(config) == {}
    new = job_id(config), recipe({"config": config, "revisions": {}})
    monkeypatch.setattr(identity, "_REVISED", {})
    assert (job_id(config), recipe({"config": config})) == new


def test_a_run_that_starts_from_a_mended_one_is_of_another_recipe():
    start = {"role": "init_from", "job_id": "1", "path": "runs/a/checkpoints/last.ckpt"}
    old = {"config": CONFIG, "lineage": [start]}
    new = {"config": CONFIG, "lineage": [{**start, "revisions": {"RandAugment": 2}}]}
    assert recipe(old) != recipe(new)
    assert recorded_revisions(new) == {"RandAugment": 2}
    assert recorded_revisions({**new, "revisions": {"PaCo": 2}}) == {"RandAugment": 2, "PaCo": 2}


def test_job_id_ignores_what_is_added_beside_the_experiment():
    assert job_id({**CONFIG, "name": "x", "ckpt_path": "y"}) == job_id(CONFIG)


def test_an_option_that_is_gone_is_left_out_of_old_configs_where_it_changed_nothing():
    old = {"class_path": "ltbench.methods.csst.CSST", "init_args": {"on_bad_loss": "error", "p": 1}}
    assert canonical(old) == {"class_path": "CSST", "init_args": {"p": 1}}
    assert canonical({"class_path": "CSST", "on_bad_loss": "error"}) == {"class_path": "CSST"}
    skipping = {"class_path": "CSST", "init_args": {"on_bad_loss": "skip"}}
    assert canonical(skipping) == skipping
    others = {"class_path": "their.Method", "init_args": {"early_stop": False}}
    assert canonical(others) == others


def test_an_option_that_was_added_makes_no_other_run_at_the_value_of_before():
    new = CONFIG
    for name, value in (("init_from", None), ("trainable", "all"), ("head_init", "own")):
        new = {
            **new,
            "model": {**new["model"], "init_args": {**new["model"]["init_args"], name: value}},
        }
    assert job_id(new) == job_id(CONFIG)
    assert recipe({"config": new}) == recipe({"config": CONFIG})
    frozen = {**new, "model": {**new["model"], "init_args": {"trainable": "head"}}}
    assert job_id(frozen) != job_id(CONFIG)

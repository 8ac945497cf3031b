"""iNaturalist in its official layout, in a miniature that the project's own script makes."""

import importlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltbench.data.sources import build_source
from ltbench.errors import UserError
from ltbench.methods.paco import PaCo
from ltbench.records import read_record

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = """
trainer: {{max_epochs: 4, accelerator: cpu, devices: 1, enable_progress_bar: false}}
model:
  class_path: PaCo
  init_args:
    backbone: tiny_net
    queue: 20
    dim: 4
    lr_schedule: {schedule}
data:
  class_path: LongTailDataModule
  init_args:
    source: inaturalist2018
    root: {root}
    profile: natural
    val_fraction: 0.0
    batch_size: 16
    image_size: 16
    decoding: {{resize: 18, random_crop: [0.08, 1.0]}}
    sampler: class_balanced
    num_workers: 1
    augment: [HorizontalFlip]
    views: {{key: [Grayscale]}}
"""
SMALL = ("--classes", "12", "--largest", "9", "--side", "40")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("mini_inat")


@pytest.fixture
def tree(script, tmp_path):
    script.main(["--output", str(tmp_path / "tree"), *SMALL])
    return tmp_path / "tree"


def content(path):
    return json.loads(path.read_text())


def rewrite(path, change):
    changed = content(path)
    change(changed)
    path.write_text(json.dumps(changed))


# --- the miniature ---


def test_the_tree_has_the_official_layout(tree):
    assert sorted(p.name for p in tree.iterdir()) == [
        "train2018.json",
        "train_val2018",
        "val2018.json",
    ]
    train, val = content(tree / "train2018.json"), content(tree / "val2018.json")
    assert [c["id"] for c in train["categories"]] == list(range(12))
    counts = Counter(a["category_id"] for a in train["annotations"])
    assert (max(counts.values()), min(counts.values())) == (9, 2)
    assert list(counts.values()) != sorted(counts.values(), reverse=True)
    assert set(Counter(a["category_id"] for a in val["annotations"]).values()) == {3}
    names = [image["file_name"] for image in train["images"] + val["images"]]
    assert len(set(names)) == len(names)
    assert {(tree / name) for name in names} == set(tree.rglob("*.jpg"))
    image = train["images"][0]
    _, group, category, file = image["file_name"].split("/")
    label = next(a for a in train["annotations"] if a["image_id"] == image["id"])["category_id"]
    assert category == str(label)
    assert group == train["categories"][label]["supercategory"]
    assert len(file) == len("0" * 32 + ".jpg")
    with Image.open(tree / image["file_name"]) as opened:
        assert (opened.format, opened.mode) == ("JPEG", "RGB")
        assert opened.size == (image["width"], image["height"])
        assert max(opened.size) == 40


def test_the_same_arguments_make_the_same_tree(script, tree, tmp_path):
    script.main(["--output", str(tmp_path / "again"), *SMALL])
    for path in sorted(tree.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(tree)).read_bytes() == path.read_bytes()


def test_a_tree_of_a_folder_of_images(script, images, tmp_path):
    words = ["--output", str(tmp_path / "tree"), "--images", str(images), *SMALL]
    script.main(words)
    source = build_source("inaturalist2018", tmp_path / "tree", 16)
    assert source.num_classes == 12
    assert source.class_names[:4] == ["ant 0", "bee 0", "cat 0", "ant 1"]


# --- reading it ---


def test_labels_are_the_official_ones_and_validation_is_the_test_split(tree):
    source = build_source("inaturalist2018", tree, 16)
    assert (source.num_classes, source.splits) == (12, {"train", "test"})
    assert source.class_names[10] == "0 1"
    assert source.mean == (0.466, 0.471, 0.380)
    for split, name in (("train", "train2018.json"), ("test", "val2018.json")):
        for path, label in zip(source.paths(split), source.labels(split), strict=True):
            assert path.parent.name == str(label)
        annotations = content(tree / name)["annotations"]
        assert source.labels(split).tolist() == [a["category_id"] for a in annotations]
    assert source.images("test", [0]).shape == (1, 3, 16, 16)


def test_the_order_in_the_file_does_not_match_images_with_labels(tree):
    reference = build_source("inaturalist2018", tree)
    before = dict(zip(reference.paths("train"), reference.labels("train"), strict=True))
    rewrite(tree / "train2018.json", lambda c: c["images"].reverse())
    after = build_source("inaturalist2018", tree)
    assert before == dict(zip(after.paths("train"), after.labels("train"), strict=True))


def test_lists_give_what_the_annotations_give(tree):
    official = build_source("inaturalist2018", tree, 16)
    for split, old, new in (("train", "train2018", "18_train"), ("test", "val2018", "18_val")):
        pairs = zip(official.paths(split), official.labels(split), strict=True)
        lines = [f"{path.relative_to(tree).as_posix()} {label}" for path, label in pairs]
        (tree / f"iNaturalist{new}.txt").write_text("\n".join(lines))
        (tree / f"{old}.json").unlink()
    listed = build_source("inaturalist2018", tree, 16)
    assert listed.num_classes == 12
    assert listed.class_names[10] == "train_val2018/0/10"
    assert listed.fingerprint == official.fingerprint
    for split in ("train", "test"):
        assert listed.labels(split).tolist() == official.labels(split).tolist()


def test_2019_has_the_layout_of_2018(tree):
    for name in ("train", "val"):
        (tree / f"{name}2018.json").rename(tree / f"{name}2019.json")
    assert build_source("inaturalist2019", tree).num_classes == 12


# --- trained on ---


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["DeiTCosine", "Cosine"])
def test_a_resumed_run_decodes_what_the_whole_one_would(
    schedule, script, ltbench, tmp_path, monkeypatch
):
    """Bit for bit, with a worker that cuts two views of each image and knows the epoch at once.

    A schedule by step asks for the length of the training, which makes Lightning start the worker
    before it has restored the epoch.
    """
    script.main(["--output", str(tmp_path / "tree"), *SMALL])
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=tmp_path / "tree", schedule=schedule))
    (tmp_path / "whole").mkdir()
    done = ltbench("fit", "--config", config, cwd=tmp_path / "whole")
    assert done.code == 0, done.err
    original = PaCo.on_train_batch_start

    def stop(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            raise KeyboardInterrupt
        original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PaCo, "on_train_batch_start", stop)
        assert ltbench("fit", "--config", config).code == 130
    done = ltbench("fit", "--config", config)
    assert "Going on from" in done.out
    one, other = (next(home.glob("runs/*")) for home in (tmp_path / "whole", tmp_path))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    weights = [
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (one, other)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    record = read_record(other / "record.json")
    assert (record["status"], record["images_seen"]) == (
        "done",
        4 * sum(record["data"]["class_counts"]),
    )
    assert record["metrics"]["last"]["test"]["accuracy"] >= 0


# --- what is refused ---


def test_neither_annotations_nor_lists(tmp_path):
    with pytest.raises(UserError, match=r"train2018\.json .*iNaturalist18_train\.txt"):
        build_source("inaturalist2018", tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [', r"train2018\.json .*line 1"),
        ("[1, 2]", r"train2018\.json .*TypeError"),
        ('{"images": [], "annotations": []}', "KeyError 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', r"train2018\.json"),
    ],
)
def test_a_malformed_file_is_named(text, told, tree):
    (tree / "train2018.json").write_text(text)
    with pytest.raises(UserError, match=told):
        build_source("inaturalist2018", tree)


def test_an_annotation_of_no_image(tree):
    rewrite(tree / "val2018.json", lambda c: c["annotations"][0].update(image_id=-5))
    with pytest.raises(UserError, match=r"val2018\.json .* KeyError -5"):
        build_source("inaturalist2018", tree)


def test_labels_and_categories_out_of_range(tree):
    rewrite(tree / "val2018.json", lambda c: c["annotations"][0].update(category_id=12))
    with pytest.raises(UserError, match=r"1 of 36 .* 0 to 11"):
        build_source("inaturalist2018", tree)
    rewrite(tree / "train2018.json", lambda c: c["categories"].pop(0))
    with pytest.raises(UserError, match=r"train2018\.json.* 0 to 10"):
        build_source("inaturalist2018", tree)


def test_missing_and_truncated_photographs_stop_before_training(tree):
    paths = build_source("inaturalist2018", tree).paths("train")
    for path in paths[:7]:
        path.unlink()
    with pytest.raises(UserError, match=rf"7 of {len(paths)} .*train2018\.json"):
        build_source("inaturalist2018", tree)
    paths[8].write_bytes(paths[8].read_bytes()[:-9])
    with pytest.warns(UserWarning, match="left out") as told:
        source = build_source("inaturalist2018", tree, on_bad_image="skip")
    assert ["are missing" in str(w.message) for w in told] == [True, False]
    assert np.array_equal(source.paths("train"), [paths[7], *paths[9:]])
    assert source.num_classes == 12

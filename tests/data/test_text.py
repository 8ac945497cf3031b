"""Texts: tables, vocabulary, other wordings, and a whole run on tokens."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm.models
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ltbench.data.protocols import NaturalProtocol, ReleasedProtocol
from ltbench.data.sources.text import Imdb, Phrases, Text, Vocabulary, reworded
from ltbench.data.text import TextDataModule, pretrained_encoder
from ltbench.errors import UserError
from ltbench.models import build_backbone
from ltbench.records import read_record
from ltbench.shipped import config_file

CONFIGS = Path(__file__).parents[2] / "configs"


class TinyBag(nn.Module):
    """The mean of word vectors, and a linear layer."""

    def __init__(self, num_classes=2, in_chans=1):
        super().__init__()
        self.words = nn.Embedding(1000, 8, padding_idx=0)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, tokens):
        assert tokens.dtype == torch.int64
        return self.fc(self.words(tokens).mean(1))


@timm.models.register_model
def tiny_bag(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):
    return TinyBag(**{k: v for k, v in kwargs.items() if k != "cache_dir"})


def write(folder, augmented=True, **sizes):
    """Write tables of two labels, ``sizes`` texts of each label in each split."""
    folder.mkdir()
    for split, size in sizes.items():
        rows = [
            (f"{label} text number {i}", label, f"{label} wording of {i}")
            for label in ("up", "down")
            for i in range(size)
        ]
        table = pd.DataFrame(rows, columns=["text", "label", "augmented"])
        if split == "unlabelled":
            table = table.drop(columns="label")
        if not augmented:
            table = table.drop(columns="augmented")
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


# --- tables ---


def test_a_table_gives_labels_and_tokens(tmp_path):
    source = Text(write(tmp_path / "words", train=3, test=2, unlabelled=4), image_size=6)
    assert source.splits == {"train", "test", "unlabelled"}
    assert (source.class_names, source.num_classes) == (["down", "up"], 2)
    assert source.labels("train").tolist() == [1] * 3 + [0] * 3
    assert source.labels("unlabelled").tolist() == [-1] * 8
    tokens = source.images("train", [4, 0])
    assert (tokens.shape, tokens.dtype) == ((2, 2, 6), torch.int32)
    words = {number: word for word, number in source.encoder.ids.items()}
    known = [[words.get(n, n) for n in wording] for wording in tokens[0].tolist()]
    assert known[0] == [1, "down", "text", "number", "1", 0]
    assert known[1] == [1, "down", 2, 2, "1", 0]


def test_the_fingerprint_is_that_of_the_tables(tmp_path):
    one = Text(write(tmp_path / "a", train=3)).fingerprint
    assert Text(write(tmp_path / "b", train=3)).fingerprint == one
    assert Text(write(tmp_path / "c", train=4)).fingerprint != one
    assert Text(write(tmp_path / "d", train=3, test=1)).fingerprint != one


def test_other_formats(tmp_path):
    folder = write(tmp_path / "words", train=3)
    table = pd.read_csv(folder / "train.csv")
    (folder / "train.csv").unlink()
    table.to_json(folder / "train.jsonl", orient="records", lines=True)
    assert Text(folder).labels("train").tolist() == [1] * 3 + [0] * 3


def test_what_a_table_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv"):
        Text(tmp_path)
    folder = write(tmp_path / "words", train=3, test=1)
    test = pd.read_csv(folder / "test.csv")
    test.assign(label="sideways").to_csv(folder / "test.csv")
    with pytest.raises(UserError, match="'sideways'"):
        Text(folder)
    test.drop(columns="label").to_csv(folder / "test.csv", index=False)
    with pytest.raises(UserError, match=r"'label'.* text, augmented"):
        Text(folder)
    rows = pd.DataFrame({"text": ["a", "b"], "label": ["x", None], "augmented": ["a", None]})
    (folder / "test.csv").unlink()
    rows.to_json(folder / "test.jsonl", orient="records", lines=True)
    with pytest.raises(UserError, match=r"test\.jsonl, row 2.*augmented"):
        Text(folder)
    rows.drop(columns="augmented").to_csv(folder / "test.csv", index=False)
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.csv, row 2.*label"):
        Text(folder)


def test_a_vocabulary_knows_the_most_frequent_words():
    vocabulary = Vocabulary(["A b, b!", "c b a"], size=2)
    assert vocabulary.ids == {"b": 3, "a": 4}
    assert len(vocabulary) == 5
    assert vocabulary(["B c a", ""], 3).tolist() == [[1, 3, 2], [1, 0, 0]]


@given(st.text())
def test_words_are_dropped_and_swapped_the_same_way_each_time(text):
    found = reworded(text, 0.4)
    assert found == reworded(text, 0.4)
    words, before = found.split(), text.split()
    assert len(words) <= len(before)
    assert not set(words) - set(before)
    assert reworded(text, 0).split() == before


def test_another_wording_is_made_where_the_table_has_none(tmp_path):
    source = Text(write(tmp_path / "words", augmented=False, train=200), image_size=8)
    tokens = source.images("train", range(400))
    assert torch.equal(source.images("train", range(400)), tokens)
    differ = (tokens[:, 0] != tokens[:, 1]).any(1).float().mean()
    assert 0.1 < differ < 0.7


def test_generated_phrases_are_learnable_and_reworded_within_their_topic():
    source = Phrases(Path())
    assert source.num_classes == 5
    assert np.bincount(source.labels("train")).tolist() == [400] * 5
    tokens, labels = source.images("train", range(2000)).numpy(), source.labels("train")
    size = len(source.encoder)
    counts = np.stack([np.bincount(row, minlength=size)[3:] for row in tokens[:, 0]])
    prototypes = np.stack([counts[labels == c].mean(0) for c in range(5)])
    scores = counts @ np.log(prototypes + 0.01).T
    assert (scores.argmax(1) == labels).mean() > 0.9
    assert (tokens[:, 0] != tokens[:, 1]).any(1).mean() > 0.5


# --- the hub ---


def test_sets_of_the_hub(monkeypatch, tmp_path):
    table = pd.DataFrame({"text": ["good", "bad", "fine"], "label": [1, 0, 1]})

    def load_dataset(path, split):
        if path != "stanfordnlp/imdb":
            raise ConnectionError("no network")
        names = SimpleNamespace(names=["neg", "pos"])
        return SimpleNamespace(to_pandas=table.copy, features={"label": names})

    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    sys.modules["datasets"].load_dataset = load_dataset
    source = Imdb(tmp_path)
    assert source.display_name == "IMDb"
    assert source.class_names == ["neg", "pos"]
    assert source.labels("test").tolist() == [1, 0, 1]
    monkeypatch.setattr(Imdb, "path", "elsewhere")
    with pytest.raises(UserError, match=r"no network.*\nOr put train.csv"):
        Imdb(tmp_path)
    assert Imdb(write(tmp_path / "mine", train=2)).class_names == ["down", "up"]


def test_what_is_not_installed(monkeypatch, tmp_path):
    for name in ("datasets", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install ltbench\[text\]"):
        Imdb(tmp_path)
    with pytest.raises(UserError, match=r"pip install ltbench\[text\]"):
        pretrained_encoder("distilbert-base-uncased")
    with pytest.raises(UserError, match=r"pip install ltbench\[text\]"):
        build_backbone("distilbert", 2)


# --- the data module ---


def test_views_are_the_two_wordings(tmp_path):
    folder = write(tmp_path / "words", train=30, test=4)
    data = TextDataModule(
        "text",
        str(folder),
        protocol=NaturalProtocol(0.3, 0.1),
        **{"max_length": 6, "batch_size": 4, "mu": 2, "steps_per_epoch": 2},
    )
    data.setup()
    batch = next(iter(data.train_dataloader()))
    data.trainer = SimpleNamespace(
        global_rank=0,
        global_step=0,
        training=True,
        world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    out = data.on_after_batch_transfer(batch, 0)
    assert out["image"].dtype == torch.int64
    assert torch.equal(out["image"], batch["image"][:, 0].long())
    hidden = out["unlabelled"]
    assert torch.equal(hidden["weak"], batch["unlabelled"]["image"][:, 0].long())
    assert torch.equal(hidden["strong"], batch["unlabelled"]["image"][:, 1].long())
    for split in ("val", "test", "unlabelled"):
        for found in data.evaluation_batches(split, torch.device("cpu")):
            assert found["image"].shape[1:] == (6,)


def test_images_are_no_texts():
    with pytest.raises(UserError, match="TextDataModule"):
        TextDataModule("digits", protocol=ReleasedProtocol(20, 2, 20, 2, 5))


# --- runs ---


@pytest.mark.parametrize("name", ["uda_imdb", "csst_imdb", "uda_dbpedia14", "csst_dbpedia14"])
def test_configs_of_the_hubs_sets_run_on_tables(name, ltbench, tmp_path):
    write(tmp_path / "words", train=40, test=5)
    done = ltbench(
        *("fit", "--config", CONFIGS / f"{name}.yaml", "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false"),
        *("--data.init_args.root", tmp_path / "words", "--data.init_args.steps_per_epoch", 2),
        *("--data.init_args.tokenizer", "null", "--data.init_args.protocol.n1", 10),
        *("--data.init_args.protocol.rho_l", 2, "--data.init_args.protocol.m1", 10),
        *("--data.init_args.protocol.rho_u", 2, "--data.init_args.protocol.val_per_class", 5),
        *("--model.init_args.backbone", "tiny_bag", "--model.init_args.backbone_args", "null"),
    )
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder / "record.json")
    assert record["method"] == {"uda": "fixmatch", "csst": "csst"}[name.split("_")[0]]
    assert record["images_seen"] == 2 * 8 * 5
    if record["method"] == "fixmatch":
        assert record["deviations"][-1].startswith("UDA's annealing")
        assert "Strong views" not in record["deviations"][0]


@pytest.mark.paper
@pytest.mark.parametrize("name", ["csst_imdb", "csst_dbpedia14", "uda_imdb", "uda_dbpedia14"])
def test_the_shipped_configs_take_the_published_network(name):
    config = yaml.safe_load(config_file(name).read_text())
    model = config["model"]["init_args"]
    weights = config["data"]["init_args"]["tokenizer"]
    assert (model["backbone"], weights) == ("distilbert", "distilbert-base-uncased")
    assert model["backbone_args"] == {"weights": weights}


@pytest.mark.parametrize("name", ["uda_phrases", "csst_phrases"])
def test_distilbert_on_generated_phrases(name, ltbench, tmp_path):
    pytest.importorskip("transformers")
    done = ltbench(
        *("fit", "--config", CONFIGS / f"{name}.yaml", "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false"),
        *("--data.init_args.steps_per_epoch", 3),
    )
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_record(folder / "record.json")["data"]["source"] == "Phrases"

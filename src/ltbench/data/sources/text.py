"""Texts instead of images: token ids, with a second wording of each text beside the first.

A text is two rows of token ids, (2, L) int32, padded with 0: the text, and its other wording, which
is the strong view of consistency training (UDA, arXiv 1904.12848). Other wordings, such as
back-translations, are a column of the data; without that column, words are dropped and swapped.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.sources.base import Labels, Source
from ltbench.errors import UserError
from ltbench.untrusted import open_file

Tokens = npt.NDArray[np.int32]
Encoder = Callable[[Sequence[str], int], Tokens]
"""Maps n texts and a length L to token ids (n, L), truncated or padded with 0."""

READERS: dict[str, Callable[[BinaryIO], pd.DataFrame]] = {
    ".csv": lambda file: pd.read_csv(file, keep_default_na=False),
    ".jsonl": lambda file: pd.read_json(file, lines=True),
    ".parquet": pd.read_parquet,
}
LENGTH = 128  # tokens, unless a config says otherwise


class Text(Source):
    """Tables ``root/train.csv`` (or ``.jsonl``, ``.parquet``); val, test, unlabelled are optional.

    Columns: ``text``; ``label`` (any value; not in ``unlabelled``); optionally ``augmented``,
    another wording of the text. Classes are the sorted labels of the training table.

    `image_size` is the length of a text in tokens. The token ids come from a vocabulary of the
    training words, unless :attr:`encoder` is set.

    Raises:
        UserError: A table or column is missing, or a label has no training texts.
    """

    name: ClassVar[str] = "text"
    texts = True
    title: ClassVar[str] = ""
    channels = 1
    mean, std = (0.0,), (1.0,)

    @override
    def _prepare(self) -> None:
        self.display_name = self.title or self.root.resolve().name
        self._tables = self._read()
        self.splits = frozenset(self._tables)
        self._class_names = sorted(map(str, self._tables["train"]["label"].unique()))
        self.num_classes = len(self._class_names)
        for split in self.splits:
            self.labels(split)

    def _read(self) -> dict[str, pd.DataFrame]:
        """Return one table per split; ``train`` must be among them."""
        tables = {}
        for split in ("train", "val", "test", "unlabelled"):
            for ending, reader in READERS.items():
                path = self.root / f"{split}{ending}"
                if path.is_file():
                    tables[split] = _table(reader, path, split != "unlabelled")
        if "train" not in tables:
            raise UserError(
                f"no table {self.root}/train.csv (or .jsonl, .parquet) found: it needs the columns "
                "text and label."
            )
        return tables

    @cached_property
    def encoder(self) -> Encoder:
        """What turns texts into token ids; default: a vocabulary of the training words."""
        return Vocabulary(self._tables["train"]["text"].tolist())

    @property
    @override
    def class_names(self) -> list[str]:
        return self._class_names

    @cached_property
    @override
    def listing(self) -> str:
        digest = hashlib.sha256()
        for split in sorted(self.splits):
            digest.update(pd.util.hash_pandas_object(self._tables[split]).to_numpy().tobytes())
        return digest.hexdigest()

    @override
    def labels(self, split: str) -> Labels:
        self._check(split)
        table = self._tables[split]
        if split == "unlabelled":
            return np.full(len(table), -1)
        number = {name: c for c, name in enumerate(self._class_names)}
        labels = table["label"].astype(str).tolist()
        if unknown := set(labels) - set(number):
            raise UserError(
                f"the {split} texts of {self.display_name} have the label '{min(unknown)}', but no "
                "training text has it."
            )
        return np.array([number[label] for label in labels])

    @override
    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        self._check(split)
        rows = self._tables[split].iloc[np.asarray(indices, dtype=np.int64)]
        texts = rows["text"].tolist()
        if "augmented" in rows:
            others = rows["augmented"].tolist()
        else:
            others = [reworded(text) for text in texts]
        length = self.image_size or LENGTH
        both = [self.encoder(wording, length) for wording in (texts, others)]
        return torch.from_numpy(np.stack(both, 1))


class Hub(Text):
    """A text set of the Hugging Face hub, read with ``datasets``, which caches the download.

    Tables of :class:`Text` in ``root``, perhaps with other wordings, take its place.
    """

    path: ClassVar[str]
    column: ClassVar[str] = "text"

    @override
    def _read(self) -> dict[str, pd.DataFrame]:
        if any((self.root / f"train{ending}").is_file() for ending in READERS):
            return super()._read()
        try:
            from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise UserError(
                f"{self.name} comes from the Hugging Face hub: pip install ltbench[text]."
            ) from error
        tables = {}
        for split in ("train", "test"):
            try:
                data = load_dataset(self.path, split=split)
            except Exception as error:  # of many types, where there is no network
                raise UserError(
                    f"cannot load {self.path} from the Hugging Face hub ({error}).\nOr put "
                    f"train.csv and test.csv, with columns text and label, into {self.root}."
                ) from error
            table = data.to_pandas().rename(columns={self.column: "text"})
            names = np.array(data.features["label"].names)
            table["label"] = names[table["label"].to_numpy()]
            tables[split] = table[["text", "label"]]
        return tables


class Imdb(Hub):
    """50,000 film reviews, negative or positive (Maas et al., ACL 2011)."""

    name, title = "imdb", "IMDb"
    path = "stanfordnlp/imdb"


class DBpedia14(Hub):
    """630,000 abstracts of Wikipedia articles in 14 classes (Zhang et al., arXiv 1509.01626)."""

    name, title = "dbpedia14", "DBpedia-14"
    path = "fancyzhx/dbpedia_14"
    column = "content"


class Phrases(Text):
    """Generated phrases about five topics, in which one word in three is of the topic.

    The other wording of a phrase replaces these by other words of the topic. `root` is not used.
    """

    name, title = "phrases", "Phrases"

    @override
    def _read(self) -> dict[str, pd.DataFrame]:
        sizes = {"train": 400, "test": 60}
        return {split: _phrases(size, seed) for seed, (split, size) in enumerate(sizes.items())}


TOPICS = {
    "animals": "cat dog horse sheep wolf fox mouse bear otter heron trout beetle",
    "food": "bread cheese apple soup onion butter olive pepper plum noodle honey salt",
    "music": "piano violin chord drum melody tempo opera flute rhythm choir cello fugue",
    "space": "planet comet orbit rocket star moon nebula probe galaxy crater lander meteor",
    "weather": "rain storm cloud thunder frost sunshine drizzle hail breeze fog snow gale",
}
FILLERS = "the a one some this near under with and or was is seen found old new big small far"


def _phrases(per_topic: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows = []
    for topic, words in TOPICS.items():
        others = np.array(" ".join(w for name, w in TOPICS.items() if name != topic).split())
        for _ in range(per_topic):
            length = draw.integers(6, 13)
            about = draw.random(length) < 1 / 3
            stray = draw.random(length) < 0.08
            text = np.where(
                about, *(draw.choice(kind.split(), length) for kind in (words, FILLERS))
            )
            text = np.where(stray, draw.choice(others, length), text)
            again = np.where(about & ~stray, draw.choice(words.split(), length), text)
            rows.append((" ".join(text), topic, " ".join(again)))
    return pd.DataFrame(rows, columns=["text", "label", "augmented"])


class Vocabulary:
    """Words of some texts as token ids, most frequent first.

    Token 0 is padding, 1 starts every text, 2 is any other word.

    Args:
        texts: Where the words come from.
        size: Largest number of words.
    """

    def __init__(self, texts: Sequence[str], size: int = 30_000) -> None:
        counts = Counter(word for text in texts for word in _words(text))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))[:size]
        self.ids = {word: number for number, word in enumerate(ordered, start=3)}

    def __len__(self) -> int:
        return len(self.ids) + 3

    def __call__(self, texts: Sequence[str], length: int) -> Tokens:
        """Return token ids (n, length)."""
        tokens = np.zeros((len(texts), length), dtype=np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [1, *(self.ids.get(word, 2) for word in _words(text))][:length]
            row[: len(ids)] = ids
        return tokens


def reworded(text: str, share: float = 0.1) -> str:
    """Drop and swap words of a text (arXiv 1901.11196), the same ones each time.

    Args:
        text: Words between blanks.
        share: Probability with which a word is dropped, and share of words that change places.
    """
    seed = hashlib.sha256(text.encode()).digest()[:8]
    draw = np.random.default_rng(int.from_bytes(seed, "little"))
    words = np.array(text.split(), dtype=object)
    words = words[draw.random(len(words)) >= share] if len(words) > 1 else words
    for _ in range(round(share * len(words))):
        one, other = draw.integers(0, len(words), 2)
        words[[one, other]] = words[[other, one]]
    return " ".join(words)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _table(reader: Callable[[BinaryIO], pd.DataFrame], path: Path, labelled: bool) -> pd.DataFrame:
    try:
        with open_file(path) as file:
            table = reader(file)
    except (ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as a table ({reason}).") from error
    for column in ("text", "label") if labelled else ("text",):
        if column not in table:
            columns = ", ".join(map(str, table.columns))
            raise UserError(f"{path} has no column '{column}'; it has {columns}.")
    if not len(table):
        raise UserError(f"{path} has no rows: add some texts.")
    for column in ("text", "augmented"):
        for row, text in enumerate(table.get(column, ())):
            if not isinstance(text, str):
                raise UserError(
                    f"{path}, row {row + 1}: column '{column}' is not a text: {text!r:.40}."
                )
    if labelled:
        missing = table["label"].isna() | (table["label"].astype(str) == "")
        if missing.any():
            raise UserError(
                f"{path}, row {missing.argmax() + 1}: the label is missing. Move texts without a "
                "label to the table 'unlabelled'."
            )
        for row, label in enumerate(table["label"]):
            if isinstance(label, dict | list):
                raise UserError(f"{path}, row {row + 1}: the label is not a name: {label!r:.40}.")
    return table

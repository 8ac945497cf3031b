"""Where images and labels come from. Importing this package does not import torch."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.errors import unknown_name

if TYPE_CHECKING:
    from ltbench.data.sources.base import OnBadImage, Source
    from ltbench.data.sources.decoding import Decoding

DESCRIPTIONS = {
    "digits": "8x8 grey handwritten digits bundled with scikit-learn: 10 classes, no download",
    "cifar10": "CIFAR-10: 32x32 colour images, 10 classes of 5,000",
    "cifar100": "CIFAR-100: 32x32 colour images, 100 classes of 500",
    "stl10": "STL-10: 96x96 colour images, 10 classes of 500, and 100,000 unlabelled images",
    "folder": "your own images: ROOT/train/<class>/*, optionally ROOT/val, /test and /unlabelled",
    "lists": "your own images: lines `path label` in ROOT/train.txt, optionally val.txt, test.txt",
    "imagenet_lt": "ImageNet-LT: 115,846 images of 1,000 classes, by the published list files",
    "places_lt": "Places-LT: 62,500 images of 365 classes, by the published list files",
    "inaturalist2018": "iNaturalist 2018: 437,513 images of 8,142 species, JSON or list files",
    "inaturalist2019": "iNaturalist 2019: 265,213 images of 1,010 species, JSON or list files",
    "phrases": "generated phrases of five topics, for CSST on text: 5 classes, no download",
    "text": "your own texts: ROOT/train.csv with columns text and label, optionally augmented",
    "imdb": "IMDb: 50,000 film reviews, negative or positive, from the Hugging Face hub",
    "dbpedia14": "DBpedia-14: 630,000 abstracts in 14 classes, from the Hugging Face hub",
}

_CLASSES = {
    "digits": "digits.Digits",
    "cifar10": "cifar.Cifar10",
    "cifar100": "cifar.Cifar100",
    "stl10": "stl10.Stl10",
    "folder": "folder.Folder",
    "lists": "lists.Lists",
    "imagenet_lt": "lists.ImageNetLT",
    "places_lt": "lists.PlacesLT",
    "inaturalist2018": "inaturalist.INaturalist2018",
    "inaturalist2019": "inaturalist.INaturalist2019",
    "phrases": "text.Phrases",
    "text": "text.Text",
    "imdb": "text.Imdb",
    "dbpedia14": "text.DBpedia14",
}


def source_class(name: str) -> "type[Source]":
    """Import the class of a source.

    Raises:
        UserError: If `name` is not one of `DESCRIPTIONS`.
    """
    if name not in _CLASSES:
        raise unknown_name("source", name, _CLASSES)
    module, attribute = _CLASSES[name].split(".")
    source: type[Source] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return source


def build_source(
    name: str,
    root: Path,
    image_size: int | None = None,
    on_bad_image: "OnBadImage" = "error",
    decoding: "Decoding | None" = None,
) -> "Source":
    """Build a source by name; the arguments are those of `ltbench.data.sources.base.Source`.

    Raises:
        UserError: If `name` is not one of `DESCRIPTIONS`, or the source finds a mistake in `root`.
    """
    return source_class(name)(root, image_size, on_bad_image, decoding)

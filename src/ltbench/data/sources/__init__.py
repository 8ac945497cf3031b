"""Where images and labels come from. Importing this package does not import torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.naming import Name, resolve

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


def build_source(
    name: Name,
    root: Path,
    image_size: int | None = None,
    on_bad_image: "OnBadImage" = "error",
    decoding: "Decoding | None" = None,
) -> "Source":
    """Build a source of ours or the user's own; its arguments are those of `sources.base.Source`.

    Raises:
        UserError: If there is no such source, or it finds a mistake in `root`.
    """
    from ltbench.data.sources.base import Source

    table = {short: f"{__name__}.{path}" for short, path in _CLASSES.items()}
    source: type[Source] = resolve("source", name, table, Source)
    return source(root, image_size, on_bad_image, decoding)

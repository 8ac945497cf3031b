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

SOURCES = {
    "digits": f"{__name__}.digits.Digits",
    "cifar10": f"{__name__}.cifar.Cifar10",
    "cifar100": f"{__name__}.cifar.Cifar100",
    "stl10": f"{__name__}.stl10.Stl10",
    "folder": f"{__name__}.folder.Folder",
    "lists": f"{__name__}.lists.Lists",
    "imagenet_lt": f"{__name__}.lists.ImageNetLT",
    "places_lt": f"{__name__}.lists.PlacesLT",
    "inaturalist2018": f"{__name__}.inaturalist.INaturalist2018",
    "inaturalist2019": f"{__name__}.inaturalist.INaturalist2019",
    "phrases": f"{__name__}.text.Phrases",
    "text": f"{__name__}.text.Text",
    "imdb": f"{__name__}.text.Imdb",
    "dbpedia14": f"{__name__}.text.DBpedia14",
}


def build_source(
    name: Name,
    root: Path,
    image_size: int | None = None,
    on_bad_image: "OnBadImage" = "error",
    decoding: "Decoding | None" = None,
) -> "Source":
    """Build a source; the other arguments are those of `sources.base.Source`.

    Args:
        name: A key of :data:`SOURCES`, or the user's own as :func:`~ltbench.naming.resolve` says.
        root: Folder of the data.
        image_size: See `Source`.
        on_bad_image: See `Source`.
        decoding: See `Source`.

    Raises:
        UserError: There is no such source, or its data is missing or wrong.
    """
    from ltbench.data.sources.base import Source

    source: type[Source] = resolve("source", name, SOURCES, Source)
    return source(root, image_size, on_bad_image, decoding)

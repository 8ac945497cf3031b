"""iNaturalist 2018 and 2019 (Van Horn et al., arXiv 1707.06642), from JSON or list files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from ltbench.data.sources.files import Files
from ltbench.data.sources.lists import Lists, distinct, listed, read_list
from ltbench.errors import UserError
from ltbench.untrusted import open_file

# The constants of the long-tail literature for iNaturalist.
INATURALIST_MEAN, INATURALIST_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)


class INaturalist2018(Lists):
    """iNaturalist 2018: 437,513 training images of 8,142 species, 1,000 to 2 per class.

    `root` holds the folder ``train_val2018`` and either the official ``train2018.json`` and
    ``val2018.json``, or the field's list files. As in the field, the official validation set,
    3 images per class, is the test split: the labels of the official test set were never published.
    Labels are the official category ids; there are as many classes as the JSON file has categories.
    """

    name = "inaturalist2018"
    display_name = "iNaturalist 2018"
    head_mid_tail: ClassVar[tuple[int, int, int] | None] = (842, 3701, 3599)
    mean, std = INATURALIST_MEAN, INATURALIST_STD
    official: ClassVar[Mapping[str, str]] = {"train": "train2018.json", "test": "val2018.json"}
    lists: ClassVar[Mapping[str, str]] = {
        "train": "iNaturalist18_train.txt",
        "test": "iNaturalist18_val.txt",
    }
    _categories: list[str] | None = None

    @override
    def _annotations(self) -> dict[str, Path]:
        files = {split: self.root / name for split, name in self.official.items()}
        if files["train"].is_file():
            return {split: path for split, path in files.items() if path.is_file()}
        train, test = self.lists["train"], self.lists["test"]
        if not (self.root / train).is_file():
            raise UserError(
                f"{self.root} has neither {self.official['train']} nor {train}.\nUnpack images and "
                f"annotations there; list files ({train}, {test}) can stand in for annotations."
            )
        return super()._annotations()

    @override
    def _read(self, path: Path) -> Files:
        if path.suffix != ".json":
            return read_list(path)
        files, names = read_annotations(path)
        if self._categories is None:
            self._categories, self.num_classes = names, len(names)
        return files

    @property
    @override
    def class_names(self) -> list[str]:
        return distinct(self._categories) if self._categories else super().class_names


class INaturalist2019(INaturalist2018):
    """iNaturalist 2019: 265,213 training images of 1,010 species, laid out as those of 2018."""

    name = "inaturalist2019"
    display_name = "iNaturalist 2019"
    head_mid_tail = None
    official: ClassVar[Mapping[str, str]] = {"train": "train2019.json", "test": "val2019.json"}
    lists: ClassVar[Mapping[str, str]] = {
        "train": "iNaturalist19_train.txt",
        "test": "iNaturalist19_val.txt",
    }


def read_annotations(path: Path) -> tuple[Files, list[str]]:
    """Read an annotation file of the official layout (COCO's), with one annotation per image.

    Returns:
        The images in the order of their annotations, and the name of each category.

    Raises:
        UserError: The file is not JSON, lacks something, or its categories are not 0, 1, 2, ...
    """
    try:
        with open_file(path) as file:
            content: dict[str, Any] = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}.") from error
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        file_names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        pairs = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
        names = [os.fsencode(file_names[image]) for image, _ in pairs]
        labels = [int(category) for _, category in pairs]
        counted = sorted(categories) == list(range(len(content["categories"])))
        single = len(file_names) == len(content["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not an iNaturalist annotation file: {type(error).__name__} {error}. It "
            "needs images (id, file_name), annotations (image_id, category_id) and categories."
        ) from error
    if not single:
        raise UserError(f"{path}: two images have the same id.")
    if not counted:
        raise UserError(f"{path}: the category ids are not 0 to {len(categories) - 1}.")
    return listed(names, labels, path), [categories[c] for c in range(len(categories))]

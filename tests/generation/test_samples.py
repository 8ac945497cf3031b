import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ltbench.data.sources.folder import Folder
from ltbench.errors import UserError
from ltbench.methods.generative.samples import (
    GRID_ROWS,
    Grid,
    Latents,
    from_uint8,
    png,
    to_uint8,
    write_image_folder,
)


def test_a_sample_does_not_depend_on_its_batch(monkeypatch):
    latents = Latents(10, latent=5, num_classes=3)
    whole = latents.__getitems__(list(range(10)))
    assert whole["latent"].shape == (10, 5)
    for row in (0, 3, 9):
        one = latents[row]
        assert torch.equal(one["latent"][0], whole["latent"][row])
        assert one["label"] == whole["label"][row]
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(latents[0]["latent"][0], whole["latent"][0])


def test_latents_are_normal_and_labels_uniform():
    drawn = Latents(3000, latent=4, num_classes=5).__getitems__(list(range(3000)))
    assert drawn["latent"].mean().abs() < 0.03
    assert abs(float(drawn["latent"].var()) - 1) < 0.05
    counts = torch.bincount(drawn["label"], minlength=5)
    assert (counts - 600).abs().max() < 100


def test_8_bits_there_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-1.1, -1, 0, 1, 1.1])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_samples_is_a_source(tmp_path, channels):
    images = torch.randint(0, 256, (5, channels, 8, 8), dtype=torch.uint8)
    labels, confidences = np.array([2, 0, 2, 2, 0]), np.linspace(0.5, 0.9, 5, dtype=np.float32)
    names, root = ["ant", "bee", "cat"], tmp_path / "new"
    write_image_folder(root, [png(image) for image in images], labels, confidences, names)
    source = Folder(root)
    assert source.class_names == ["ant", "cat"]  # no bee was made
    assert source.labels("train").tolist() == [0, 0, 1, 1, 1]
    expected = images[[1, 4, 0, 2, 3]].expand(-1, 3, -1, -1)
    assert torch.equal(source.images("train", range(5)), expected)
    table = pd.read_csv(root / "labels.csv")
    assert table["image"].tolist()[:2] == ["train/cat/000000.png", "train/ant/000001.png"]
    assert table["class"].tolist() == ["cat", "ant", "cat", "cat", "ant"]
    assert table["confidence"].to_numpy() == pytest.approx(confidences)
    with pytest.raises(UserError, match="not empty"):
        write_image_folder(root, [], labels[:0], confidences[:0], names)


@pytest.mark.parametrize(("classes", "channels"), [(3, 1), (100, 3)])
def test_the_grid_shows_samples_by_class(tmp_path, classes, channels):
    grid = Grid([f"class {c}" for c in range(classes)])
    assert len(grid.images) == min(classes, GRID_ROWS)
    assert {0, classes - 1} <= grid.images.keys()
    labels = torch.arange(60) % (classes - 1)  # none of the last class
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, channels, 8, 8).contiguous()
    for part in (slice(0, 7), slice(7, 60)):
        grid.add(images[part], labels[part])
    for c, shown in grid.images.items():
        assert all((image == c).all() for image in shown)
        assert len(shown) == min(10, int((labels == c).sum()))
    (tmp_path / "grid.png").write_bytes(grid.png(np.bincount(labels, minlength=classes)))
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 100

import numpy as np
import pytest
import torch
from digit_runs import analyze, deit_run

from ltbench.analysis.attention import mean_distance, patch_distances, rollout


def attention(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.mark.paper
def test_uniform_attention_over_14_by_14_patches_of_16_pixels():
    between = patch_distances(14, 14, 16)
    uniform = torch.full((1, 2, 198, 198), 1 / 198)
    assert mean_distance(uniform, between, 2).tolist()[0] == pytest.approx([116.492] * 2, abs=1e-3)
    assert float(between[0].mean()) == pytest.approx(161.030, abs=1e-3)  # of a corner


def test_distances_are_those_of_the_definition():
    high, wide, patch, prefix = 2, 3, 4, 1
    maps = attention(2, 2, 7, 7)
    result = mean_distance(maps, patch_distances(high, wide, patch), prefix)
    places = [(r * patch, c * patch) for r in range(high) for c in range(wide)]
    for image in range(2):
        for head in range(2):
            looked = []
            for i, here in enumerate(places):
                row = maps[image, head, prefix + i, prefix:].numpy()
                distances = [np.hypot(here[0] - r, here[1] - c) for r, c in places]
                looked.append((row * distances).sum() / row.sum())
            assert float(result[image, head]) == pytest.approx(np.mean(looked), rel=1e-5)


def test_attention_to_oneself_has_no_distance():
    between = patch_distances(3, 3, 8)
    assert mean_distance(torch.eye(10)[None, None], between, 1).item() == 0


def test_rollout_follows_every_path_through_the_blocks():
    maps = [attention(1, 3, 4, 4, seed=i) for i in range(3)]
    steps = [(m.mean(1)[0].numpy() + np.eye(4)) / 2 for m in maps]
    expected = np.zeros((4, 4))
    for i, j, k, end in np.ndindex(4, 4, 4, 4):  # from the last block's query to a patch
        expected[i, end] += steps[2][i, j] * steps[1][j, k] * steps[0][k, end]
    result = rollout(maps)[0]
    assert result.numpy() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(result.sum(-1), torch.ones(4))


def test_heads_of_a_trained_student_look_no_further_than_the_image_is_wide(
    ltbench, digits_run, tmp_path, make_images
):
    folder = deit_run(digits_run)
    make_images(tmp_path / "mine", {"": 2}, size=20)
    words = ("--images", "30", "--batch_size", "7", "--pictures", tmp_path / "mine")
    result = analyze(ltbench, "attention", folder, tmp_path / "a", *words)
    distances = np.array(result["distance_px"])
    assert distances.shape == (2, 2)
    assert (np.diff(distances) >= 0).all()
    assert ((distances > 0) & (distances < 12 * np.sqrt(2))).all()
    assert result["uniform_px"] == pytest.approx(float(patch_distances(4, 4, 4).mean()))
    assert result["images"] == 30
    other = analyze(ltbench, "attention", folder, tmp_path / "b", "--images", "30")
    assert np.array(other["distance_px"]) == pytest.approx(distances, rel=1e-5)
    assert set(other["figures"]) == {"attention.png", "attention-rollout.png"}


def test_a_network_without_attention_is_refused(refused, digits_run, tmp_path):
    command = ("analyze", "attention", "--run", digits_run.folder, "--output", tmp_path)
    assert "TinyNet" in refused(*command, "--device", "cpu")

import io

import numpy as np
import pytest
import torch
from digit_runs import analyze, copy_of
from torch import nn

from ltbench.analysis import landscape
from ltbench.analysis.curvature import MeanLoss


def test_a_quadratic_is_drawn_as_its_formula_and_the_weights_stay(digits_run):
    curvature = torch.tensor([4.0, -2.0, 1.0], dtype=torch.float64)
    weights = nn.Parameter(torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64))
    before = weights.detach().clone()
    target = MeanLoss(
        [weights], lambda: [{}], lambda b: (curvature * weights**2).sum() / 2, lambda b: 1.0
    )
    first, second = torch.eye(3, dtype=torch.float64)[:2]
    axis = np.linspace(-1, 1, 5)
    grid = landscape.plane(target, first, second, axis)
    a, b = np.meshgrid(axis, axis, indexing="ij")
    expected = 2 * (0.3 + a) ** 2 - (-0.2 + b) ** 2 + 0.7**2 / 2
    assert grid == pytest.approx(expected)
    assert torch.equal(weights.detach(), before)


def test_the_loss_rises_along_the_strongest_curvature_faster_than_along_the_others(
    ltbench, digits_run, tmp_path
):
    words = ("--points", "3", "--radius", "0.02", "--steps", "25", "--classes", "0", "9")
    random = analyze(ltbench, "landscape", digits_run.folder, tmp_path / "a", *words)
    bottom = analyze(
        ltbench, "landscape", digits_run.folder, tmp_path / "b", *words, "--second", "bottom"
    )
    assert set(random["figures"]) == {"landscape.png", "landscape-cuts.png"}
    for name in ("0", "9"):
        entry, other = random["classes"][name], bottom["classes"][name]
        assert entry["axis"] == [-0.02, 0.0, 0.02]
        assert entry["lambda_first"] == pytest.approx(other["lambda_first"])
        assert other["lambda_second"] < 0 < entry["lambda_first"]
        assert abs(entry["lambda_second"]) < 0.1 * entry["lambda_first"]
        for each, axis in ((entry, 0), (other, 0), (other, 1)):
            # A small step's second difference is the curvature along the direction.
            loss = np.array(each["loss"])
            along = loss[:, 1] if axis == 0 else loss[1]
            slope = (along[0] - 2 * along[1] + along[2]) / 0.02**2
            expected = each["lambda_first" if axis == 0 else "lambda_second"]
            assert slope == pytest.approx(expected, rel=0.25, abs=0.05)


@pytest.mark.parametrize("corner", [0.0, None, float("nan"), float("inf")])
def test_a_loss_of_zero_or_one_that_overflows_is_drawn_all_the_same(corner):
    class_ = {"axis": [-1, 0, 1], "train_images": 9, "lambda_first": 2.0, "lambda_second": 0.1}
    flat = {**class_, "loss": [[0.0] * 3] * 3}
    steep = {**class_, "loss": [[1.0, 0.2, 3.0], [1.0, 0.1, 2.0], [4.0, 9.0, corner]]}
    for runs in ({"a": {"0": steep}}, {"a": {"0": flat}, "b": {"0": steep}}):
        for draw in (landscape.maps, landscape.cuts):
            draw(runs, "random").savefig(io.BytesIO())


def test_another_run_is_drawn_beside_and_an_even_grid_has_no_middle(
    ltbench, refused, digits_run, tmp_path
):
    folder = copy_of(digits_run, tmp_path)
    words = ("--points", "3", "--steps", "2", "--images", "4", "--batch_size", "3")
    analyze(ltbench, "landscape", folder, folder / "analysis", *words)
    result = analyze(
        ltbench, "landscape", digits_run.folder, tmp_path / "b", *words, "--beside", folder
    )
    assert list(result["classes"]) == ["0", "9"]
    command = ("analyze", "landscape", "--run", digits_run.folder, "--output", tmp_path / "b")
    assert "--points" in refused(*command, "--device", "cpu", "--points", "4")

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.analysis.lanczos import density, lanczos, rademacher
from ltbench.analysis.spectra import extremes


def symmetric(size, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=draw, dtype=dtype)
    return matrix + matrix.T


def run(matrix, steps, count=1, seed=0):
    starts = torch.stack([rademacher(len(matrix), seed, i) for i in range(count)])
    return lanczos(lambda v: v @ matrix, starts.to(matrix.dtype), steps)


@pytest.mark.paper
@pytest.mark.parametrize("seed", range(4))
def test_a_diagonal_hessian_is_known_exactly_from_one_start_of_signs(seed):
    (krylov,) = run(torch.diag(torch.tensor([-2.0, 0, 1, 5], dtype=torch.float64)), 4, seed=seed)
    assert krylov.nodes == pytest.approx([-2, 0, 1, 5], abs=1e-12)
    assert krylov.weights == pytest.approx([0.25] * 4)
    stored = {"nodes": krylov.nodes, "weights": krylov.weights, "errors": krylov.errors[[0, -1]]}
    numbers = extremes([stored], 4)
    assert numbers["trace"] == pytest.approx(4)
    assert numbers["ratio"] == pytest.approx(0.4)
    assert numbers["trace_error"] is None


def test_as_many_steps_as_dimensions_give_every_eigenvalue():
    matrix = symmetric(40)
    (krylov,) = run(matrix, 99)
    assert krylov.nodes == pytest.approx(torch.linalg.eigvalsh(matrix).numpy(), abs=1e-9)


def test_few_steps_find_the_extremes_within_the_stated_errors():
    matrix = symmetric(300)
    exact = torch.linalg.eigvalsh(matrix).numpy()
    (krylov,) = run(matrix, 30)
    assert exact[0] <= krylov.nodes[0]
    assert krylov.nodes[-1] <= exact[-1]
    gaps = np.abs(exact[:, None] - krylov.nodes).min(0)
    assert (gaps <= krylov.errors + 1e-9).all()
    assert krylov.nodes[[0, -1]] == pytest.approx(exact[[0, -1]], rel=0.02)


def test_the_quadrature_has_the_moments_of_its_start():
    matrix, steps = symmetric(50, 1), 6
    (krylov,) = run(matrix, steps)
    start = krylov.basis[0]
    power = start
    for order in range(2 * steps):
        moment = float((krylov.weights * krylov.nodes**order).sum())
        assert moment == pytest.approx(float(start @ power), rel=1e-9)
        power = matrix @ power


def test_ritz_vectors_of_converged_nodes_are_eigenvectors():
    matrix = symmetric(60, 2)
    (krylov,) = run(matrix, 60)
    for node in (0, -1):
        vector = krylov.vector(node)
        assert vector.norm() == pytest.approx(1)
        image = matrix @ vector
        assert torch.allclose(image, float(krylov.nodes[node]) * vector, atol=1e-8)


def test_starts_go_in_lock_step_as_they_go_alone():
    matrix = symmetric(40, 3)
    together = run(matrix, 12, count=3)
    for number, krylov in enumerate(together):
        start = rademacher(40, 0, number).double()[None]
        (alone,) = lanczos(lambda v: v @ matrix, start, 12)
        assert krylov.nodes == pytest.approx(alone.nodes, abs=1e-10)
        assert krylov.weights == pytest.approx(alone.weights, abs=1e-10)


def test_a_start_in_a_small_invariant_subspace_ends_early_and_others_go_on():
    matrix = torch.diag(torch.arange(6, dtype=torch.float64))
    starts = torch.stack([torch.eye(6, dtype=torch.float64)[2], torch.ones(6).double()])
    short, full = lanczos(lambda v: v @ matrix, starts, 6)
    assert short.nodes.tolist() == [2.0]
    assert short.errors.tolist() == [0.0]
    assert full.nodes == pytest.approx(range(6), abs=1e-9)


def test_a_hundred_steps_in_float32_stay_orthonormal():
    matrix = symmetric(400, dtype=torch.float32)
    matrix[0, 0] = 1e4  # converges at once, which is where plain Lanczos loses orthogonality
    (krylov,) = run(matrix, 100)
    gram = krylov.basis @ krylov.basis.T
    assert torch.allclose(gram, torch.eye(100), atol=1e-5)
    assert krylov.nodes[-1] == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-5)


def test_the_trace_is_hutchinsons_with_its_standard_error():
    matrix = symmetric(30, 5)
    runs = [
        {"nodes": k.nodes, "weights": k.weights, "errors": k.errors[[0, -1]]}
        for k in run(matrix, 30, count=8)
    ]
    signs = torch.stack([rademacher(30, 0, i) for i in range(8)]).double()
    samples = ((signs @ matrix) * signs).sum(1).numpy()
    numbers = extremes(runs, 30)
    assert numbers["trace"] == pytest.approx(samples.mean())
    assert numbers["trace_error"] == pytest.approx(samples.std(ddof=1) / np.sqrt(8))


def test_without_negative_curvature_the_ratio_is_zero_and_without_any_positive_undefined():
    def ratio(*nodes):
        stored = {"nodes": list(nodes), "weights": [0.5, 0.5], "errors": [0, 0]}
        return extremes([stored], 2)["ratio"]

    assert ratio(1.0, 4.0) == 0
    assert ratio(-2.0, 4.0) == 0.5
    assert ratio(-2.0, -1.0) is None


@settings(max_examples=40)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20, unique=True),
    st.integers(0, 2**31),
)
def test_the_density_has_unit_area_and_mass_where_the_nodes_are(nodes, seed):
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(nodes)), 2)
    grid, values = density([np.array(nodes)] * 2, list(weights))
    assert (np.diff(grid) > 0).all()
    assert np.trapezoid(values, grid) == pytest.approx(1, abs=0.01)
    mean = float(weights.mean(0) @ np.array(nodes))
    scale = max(1, np.ptp(nodes))
    assert np.trapezoid(values * (grid - mean), grid) == pytest.approx(0, abs=0.01 * scale)

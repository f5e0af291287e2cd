"""Power iteration and Lanczos on matrices whose eigenvalues are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hpclbfl.sharpness.hessian import Spectrum, density, lanczos, power_iteration, random_vector, top_eigenpairs


def start_of(size: int) -> Callable[[int], Tensor]:
    return lambda index: random_vector(size, torch.float64, torch.device("cpu"), 3, index)


def matrix_of(eigenvalues: list[float]) -> Tensor:
    """Symmetric, with these eigenvalues and eigenvectors that are no axes."""
    torch.manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def test_by_hand_on_a_diagonal() -> None:
    # From v = (1, 1) / sqrt 2 the first quotient of diag(3, 1) is (3 + 1) / 2 and its residual |(1, -1)| / sqrt 2 = 1.
    diagonal = torch.tensor([3.0, 1.0], dtype=torch.float64)
    first = power_iteration(lambda v: diagonal * v, torch.ones(2, dtype=torch.float64), 1e-9, max_iterations=1)
    assert first.value == pytest.approx(2.0)
    assert first.residual == pytest.approx(1.0)
    assert (first.iterations, first.has_settled) == (1, False)


def test_largest_in_magnitude_first_with_their_signs() -> None:
    matrix = matrix_of([-5.0, 4.0, 1.0, 0.5, 0.0, -2.0])
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(6), 4, tolerance=1e-9, max_iterations=500)
    assert [pair.value for pair in pairs] == pytest.approx([-5.0, 4.0, -2.0, 1.0], abs=1e-6)
    for pair in pairs:
        assert pair.has_settled
        assert pair.residual < 1e-7
        assert float(torch.linalg.vector_norm(matrix @ pair.vector - pair.value * pair.vector)) == pytest.approx(
            pair.residual, abs=1e-12
        )
    vectors = torch.stack([pair.vector for pair in pairs])
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_error_of_a_known_one_does_not_keep_the_next_from_settling() -> None:
    matrix = matrix_of([10.0, 6.0, 1.0, 0.5])
    first, second = top_eigenpairs(lambda v: matrix @ v, start_of(4), 2, tolerance=1e-3, max_iterations=100)
    assert first.has_settled and second.has_settled
    assert second.value == pytest.approx(6.0, rel=1e-4)


def test_two_of_opposite_sign_do_not_settle_and_say_so() -> None:
    matrix = matrix_of([2.0, -2.0, 1.0])
    pair = power_iteration(lambda v: matrix @ v, start_of(3)(0), 1e-3, max_iterations=50)
    assert not pair.has_settled
    assert pair.residual > 0.1


def test_nothing_is_curved() -> None:
    pair = power_iteration(torch.zeros_like, torch.ones(3, dtype=torch.float64))
    assert (pair.value, pair.residual, pair.has_settled) == (0.0, 0.0, True)


def test_lanczos_finds_all_eigenvalues_and_the_start_vectors_weights() -> None:
    eigenvalues = [-3.0, -1.0, 0.25, 0.5, 2.0, 2.5, 7.0, 9.0]
    matrix = matrix_of(eigenvalues)
    start = start_of(8)(0)
    found = lanczos(lambda v: matrix @ v, start, 20)
    values, vectors = np.linalg.eigh(matrix.numpy())
    unit = start.numpy() / np.linalg.norm(start.numpy())
    np.testing.assert_allclose(found.values, values, atol=1e-9)
    np.testing.assert_allclose(found.weights, (vectors.T @ unit) ** 2, atol=1e-9)
    assert (found.residuals < 1e-9).all()


def test_lanczos_ends_where_the_space_is_exhausted() -> None:
    # Two eigenvalues alone: the Krylov space of any vector has two dimensions.
    matrix = matrix_of([3.0, 3.0, 3.0, -1.0, -1.0])
    steps: list[int] = []

    def product(vector: torch.Tensor) -> torch.Tensor:
        steps.append(len(steps) + 1)
        return matrix @ vector

    found = lanczos(product, start_of(5)(0), 5)
    np.testing.assert_allclose(found.values, [-1.0, 3.0], atol=1e-12)
    assert steps == [1, 2]


def test_lanczos_keeps_its_basis_orthogonal_and_bounds_its_errors() -> None:
    # A wide spectrum, in which a basis that is not re-orthogonalised brings the largest eigenvalue back as a ghost.
    eigenvalues = [*np.linspace(0.0, 1.0, 298).tolist(), 50.0, 100.0]
    matrix = matrix_of(eigenvalues)
    found = lanczos(lambda v: matrix @ v, start_of(300)(0), 60)
    assert (found.values > 20).sum() == 2
    np.testing.assert_allclose(found.values[-2:], [50.0, 100.0], atol=1e-9)
    exact = np.array(eigenvalues)
    distance = np.abs(found.values[:, None] - exact).min(axis=1)
    assert (distance <= found.residuals + 1e-10).all()
    assert found.weights.sum() == pytest.approx(1.0)


def test_density_by_hand() -> None:
    spectrum = Spectrum(np.array([0.0, 10.0]), np.array([0.75, 0.25]), np.zeros(2))
    curve = density(spectrum, num_points=5401, width=0.5)
    x, y = curve["eigenvalue"], curve["density"]
    assert np.trapezoid(y, x) == pytest.approx(1.0, abs=1e-4)
    # The peak of a normal density: weight / (width sqrt(2 pi)).
    assert np.interp([0.0, 10.0, 5.0], x, y) == pytest.approx([0.59841, 0.19947, 0.0], abs=1e-4)


def test_start_vectors_depend_on_their_key_alone() -> None:
    device = torch.device("cpu")
    one, again = (random_vector(100, torch.float64, device, 0, 1) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, random_vector(100, torch.float64, device, 0, 2))
    torch.testing.assert_close(random_vector(100, torch.float32, device, 0, 1), one.float())

"""Stochastic Lanczos quadrature on matrices whose spectrum is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpclbfl.sharpness.lanczos import random_vector
from hpclbfl.sharpness.spectrum import Quadrature, Spectrum, mean_and_error, quadrature, resolution
from tests.sharpness.conftest import counting, matrix_of, start_of


def spectrum_of(matrix: torch.Tensor, vectors: int, steps: int, seed: int = 0) -> Spectrum:
    size, device = len(matrix), torch.device("cpu")
    starts = [random_vector(size, matrix.dtype, device, seed, 2, vector) for vector in range(vectors)]
    seen = tuple(quadrature(lambda v: matrix @ v, start, steps) for start in starts)
    return Spectrum(seen, size, resolution(matrix.dtype))


def test_lanczos_finds_all_eigenvalues_and_the_start_vectors_weights() -> None:
    eigenvalues = [-3.0, -1.0, 0.25, 0.5, 2.0, 2.5, 7.0, 9.0]
    matrix = matrix_of(eigenvalues)
    start = start_of(8)(0)
    found = quadrature(lambda v: matrix @ v, start, 20)
    values, vectors = np.linalg.eigh(matrix.numpy())
    unit = start.numpy() / np.linalg.norm(start.numpy())
    np.testing.assert_allclose(found.values, values, atol=1e-9)
    np.testing.assert_allclose(found.weights, (vectors.T @ unit) ** 2, atol=1e-9)
    assert (found.residuals < 1e-9).all()


def test_lanczos_ends_where_the_space_is_exhausted() -> None:
    # Two eigenvalues alone: the Krylov space of any vector has two dimensions.
    product, steps = counting(matrix_of([3.0, 3.0, 3.0, -1.0, -1.0]))
    found = quadrature(product, start_of(5)(0), 5)
    np.testing.assert_allclose(found.values, [-1.0, 3.0], atol=1e-12)
    assert steps == [1, 2]


def test_lanczos_keeps_its_basis_orthogonal_and_bounds_its_errors() -> None:
    # A wide spectrum, in which a basis that is not re-orthogonalised brings the largest eigenvalue back as a ghost.
    eigenvalues = [*np.linspace(0.0, 1.0, 298).tolist(), 50.0, 100.0]
    matrix = matrix_of(eigenvalues)
    found = quadrature(lambda v: matrix @ v, start_of(300)(0), 60)
    assert (found.values > 20).sum() == 2
    np.testing.assert_allclose(found.values[-2:], [50.0, 100.0], atol=1e-9)
    exact = np.array(eigenvalues)
    distance = np.abs(found.values[:, None] - exact).min(axis=1)
    assert (distance <= found.residuals + 1e-10).all()
    assert found.weights.sum() == pytest.approx(1.0)


# Of 200 eigenvalues 2 are outliers, 30 lie at 1 and 168 at 0.
OUTLIERS = matrix_of([10.0, -5.0, *[1.0] * 30, *[0.0] * 168])
SHARES = [1 / 200, 168 / 200, 30 / 200, 1 / 200]


def test_one_vector_misses_weights_and_ten_are_within_their_error() -> None:
    values = [-5.0, 0.0, 1.0, 10.0]
    singles, misses, covered = [], 0, 0
    for seed in range(40):
        spectrum = spectrum_of(OUTLIERS, 10, 12, seed)
        parts = spectrum.weights()
        np.testing.assert_allclose(parts.values, values, atol=1e-9)
        mean, error = mean_and_error(parts.shares)
        assert mean.sum() == pytest.approx(1.0)
        singles.append(parts.shares[0, 3])
        # Student's t with nine degrees of freedom: 3.25 standard errors hold 99 % of means of normal values.
        misses += int((np.abs(mean - SHARES) > 3.25 * error)[1:3].any())
        covered += int((np.abs(mean - SHARES) <= 2 * error).sum())
    ratios = np.array(singles) / SHARES[3]
    # One vector alone has a single eigenvalue's weight five times too large or too small in about half of all cases.
    assert ((ratios > 5) | (ratios < 0.2)).mean() > 0.3
    assert misses <= 3
    # Two standard errors hold 92 % where values are normal; squares of normal ones, as of the outliers, fewer.
    assert covered / 160 > 0.75


def test_the_trace_is_within_its_error() -> None:
    trace, error = spectrum_of(OUTLIERS, 10, 12).trace()
    assert abs(trace - 35.0) <= 3 * error
    # By hand: the variance of a normal vector's quotient is 2 |H|^2 / P^2 less the mean's part, times P.
    expected = np.sqrt(2 * (100 + 25 + 30 - 35**2 / 200) / 10)
    assert error == pytest.approx(expected, rel=0.6)


def test_the_density_is_within_its_error() -> None:
    eigenvalues = np.concatenate([np.random.default_rng(0).normal(0, 1, 390), np.full(10, 8.0)])
    spectrum = spectrum_of(matrix_of(eigenvalues.tolist()), 10, 60)
    curve = spectrum.density(width=0.4)
    x, y, error = curve["eigenvalue"], curve["density"], curve["error"]
    assert np.trapezoid(y, x) == pytest.approx(1.0, abs=1e-3)
    exact = np.exp(-0.5 * ((x[:, None] - eigenvalues) / 0.4) ** 2).mean(1) / (0.4 * np.sqrt(2 * np.pi))
    seen = exact > 1e-3
    assert (np.abs(y - exact)[seen] <= 3 * error[seen] + 1e-3).mean() > 0.95
    assert 0.0 < error[seen].max() < 0.1


def test_what_residuals_bridge_is_one_part() -> None:
    one = Quadrature(np.array([0.0, 1.0, 5.0]), np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.9, 0.0]))
    two = Quadrature(np.array([0.1, 5.0]), np.array([0.9, 0.1]), np.array([0.0, 0.0]))
    parts = Spectrum((one, two), 10, 1e-9).weights()
    # [-0.2, 0.2], [0.1, 1.9] and [0.1, 0.1] touch; 5 stands alone.
    np.testing.assert_allclose(parts.low, [-0.2, 5.0], atol=1e-7)
    np.testing.assert_allclose(parts.high, [1.9, 5.0], atol=1e-7)
    np.testing.assert_allclose(parts.shares, [[0.8, 0.2], [0.9, 0.1]])
    np.testing.assert_allclose(parts.values, [(0.3 * 1.0 + 0.9 * 0.1) / 1.7, 5.0])
    mean, error = mean_and_error(parts.shares)
    np.testing.assert_allclose(mean, [0.85, 0.15])
    # By hand: the spread of two values 0.1 apart is 0.1 / sqrt 2, of their mean 0.05.
    np.testing.assert_allclose(error, [0.05, 0.05])


def test_an_eigenvalue_that_one_vector_does_not_see_counts_as_nothing_there() -> None:
    one = Quadrature(np.array([0.0, 4.0]), np.array([0.9, 0.1]), np.zeros(2))
    two = Quadrature(np.array([0.0]), np.array([1.0]), np.zeros(1))
    parts = Spectrum((one, two), 10, 1e-9).weights()
    np.testing.assert_allclose(parts.shares, [[0.9, 0.1], [1.0, 0.0]])


def test_rounding_makes_no_parts_of_its_own() -> None:
    spectrum = spectrum_of(OUTLIERS.float(), 10, 12)
    parts = spectrum.weights()
    np.testing.assert_allclose(parts.values, [-5.0, 0.0, 1.0, 10.0], atol=1e-3)


def test_density_by_hand() -> None:
    spectrum = Spectrum((Quadrature(np.array([0.0, 10.0]), np.array([0.75, 0.25]), np.zeros(2)),), 4, 1e-9)
    curve = spectrum.density(num_points=5401, width=0.5)
    x, y = curve["eigenvalue"], curve["density"]
    assert np.trapezoid(y, x) == pytest.approx(1.0, abs=1e-4)
    # The peak of a normal density: weight / (width sqrt(2 pi)).
    assert np.interp([0.0, 10.0, 5.0], x, y) == pytest.approx([0.59841, 0.19947, 0.0], abs=1e-4)
    assert np.isnan(curve["error"]).all()


def test_nothing_is_curved() -> None:
    spectrum = spectrum_of(torch.zeros(5, 5).double(), 3, 4)
    parts = spectrum.weights()
    assert (parts.values.tolist(), parts.low.tolist(), parts.high.tolist()) == ([0.0], [0.0], [0.0])
    np.testing.assert_allclose(parts.shares, np.ones((3, 1)))
    assert spectrum.trace() == (0.0, 0.0)


def test_start_vectors_depend_on_their_key_alone() -> None:
    device = torch.device("cpu")
    one, again = (random_vector(100, torch.float64, device, 0, 1) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, random_vector(100, torch.float64, device, 0, 2))
    torch.testing.assert_close(random_vector(100, torch.float32, device, 0, 1), one.float())

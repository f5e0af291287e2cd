"""Top eigenvalues by Lanczos on matrices whose eigenvalues are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpclbfl.sharpness.eigenpairs import Eigenpair, top_eigenpairs
from hpclbfl.sharpness.lanczos import Krylov, random_vector
from tests.sharpness.conftest import counting, matrix_of, start_of


def values_of(pairs: list[Eigenpair]) -> list[float]:
    return [pair.eigenvalue for pair in pairs]


def test_by_hand_on_a_diagonal() -> None:
    # From v = (1, 1) / sqrt 2 the quotient of diag(3, 1) is (3 + 1) / 2 and its residual |(1, -1)| / sqrt 2 = 1.
    diagonal = torch.tensor([3.0, 1.0], dtype=torch.float64)
    (first,) = top_eigenpairs(lambda v: diagonal * v, lambda _: torch.ones(2).double(), 1, max_iterations=1)
    assert first.eigenvalue == pytest.approx(2.0)
    assert first.residual == pytest.approx(1.0)
    assert (first.iterations, first.has_settled) == (1, False)


def test_largest_in_magnitude_first_with_their_signs() -> None:
    matrix = matrix_of([-5.0, 4.0, 1.0, 0.5, 0.0, -2.0])
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(6), 4, tolerance=1e-9)
    assert values_of(pairs) == pytest.approx([-5.0, 4.0, -2.0, 1.0], abs=1e-12)
    for pair in pairs:
        assert pair.has_settled
        assert pair.residual < 1e-9
        assert float(torch.linalg.vector_norm(matrix @ pair.vector - pair.eigenvalue * pair.vector)) == pytest.approx(
            pair.residual, abs=1e-12
        )
    vectors = torch.stack([pair.vector for pair in pairs])
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_two_of_opposite_sign_and_nearly_one_magnitude() -> None:
    # A power iteration stands still between the two, its residual 5, or takes their mean for an eigenvalue.
    bulk = np.linspace(-1, 1, 98).tolist()
    for signs in ([5.0, -4.99], [-5.0, 4.99]):
        product, count = counting(matrix_of([*signs, *bulk]))
        pairs = top_eigenpairs(product, start_of(100), 2)
        assert values_of(pairs) == pytest.approx(signs, abs=1e-4)
        assert all(pair.has_settled and pair.residual <= 5e-3 for pair in pairs)
        assert len(count) == sum(pair.iterations for pair in pairs) <= 40
        (alone,) = top_eigenpairs(product, start_of(100), 1)
        assert alone.eigenvalue == pytest.approx(signs[0], abs=1e-4)


def test_an_end_that_converges_late_is_waited_for() -> None:
    # -4.99 stands alone and settles within a few products; 5 has a neighbour and takes longer.
    matrix = matrix_of([-4.99, 5.0, 4.97, *np.linspace(3.0, 4.8, 60), *np.linspace(-1, 1, 200)])
    for seed in range(8):
        start = random_vector(263, torch.float64, torch.device("cpu"), seed)
        (pair,) = top_eigenpairs(lambda v: matrix @ v, lambda _: start, 1)  # noqa: B023
        assert pair.eigenvalue > 0 and pair.has_settled


def test_an_eigenvalue_counts_as_often_as_it_has_eigenvectors() -> None:
    # The Krylov space of one vector holds 3 and -1 once each.
    matrix = matrix_of([3.0, 3.0, 3.0, -1.0, -1.0])
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(5), 5)
    assert values_of(pairs) == pytest.approx([3.0, 3.0, 3.0, -1.0, -1.0])
    assert all(pair.has_settled for pair in pairs)


def test_neighbours_within_the_tolerance_are_told_apart() -> None:
    # From one start vector, 10 and 9.99 pass for one eigenvalue of residual 0.005, and 5 for the second.
    matrix = matrix_of([10.0, 9.99, 5.0, *np.linspace(0, 1, 60)])
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(63), 3, tolerance=1e-2)
    assert values_of(pairs) == pytest.approx([10.0, 9.99, 5.0], abs=2e-3)


def test_without_enough_products_nothing_has_converged() -> None:
    matrix = matrix_of(np.linspace(0, 1, 400).tolist())
    (pair,) = top_eigenpairs(lambda v: matrix @ v, start_of(400), 1, tolerance=1e-8, max_iterations=8)
    assert (pair.iterations, pair.has_settled) == (8, False)
    assert pair.residual > 1e-3


@pytest.mark.parametrize("basis", [6, 7, 20])
def test_restarts_bound_the_memory_and_find_the_same(basis: int) -> None:
    matrix = matrix_of(np.linspace(-1, 1.02, 300).tolist())
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(300), 2, 1e-6, 3000, basis)
    assert values_of(pairs) == pytest.approx([1.02, 1.02 - 2.02 / 299], abs=1e-9)
    assert all(pair.has_settled for pair in pairs)
    assert max(pair.iterations for pair in pairs) > 3 * basis


def test_a_restarted_basis_is_orthonormal_and_sees_the_operator() -> None:
    matrix = matrix_of(np.linspace(-1, 1, 50).tolist())
    space = Krylov(lambda v: matrix @ v, start_of(50)(0), 8)
    for _ in range(40):
        if space.is_full:
            space.restart()
        space.grow()
    basis = space._basis[: space.size]
    torch.testing.assert_close(basis @ basis.T, torch.eye(space.size).double(), atol=1e-12, rtol=0)
    seen = (basis @ matrix @ basis.T).numpy()
    np.testing.assert_allclose(space._matrix[: space.size, : space.size], seen, atol=1e-12)
    ritz = space.ritz()
    for value, vector, residual in zip(ritz.values, ritz.vectors.T, ritz.residuals, strict=True):
        y = space.vector(vector)
        assert float(torch.linalg.vector_norm(matrix @ y - value * y)) == pytest.approx(residual, abs=1e-12)


def test_nothing_is_curved() -> None:
    product, count = counting(torch.zeros(3, 3).double())
    pairs = top_eigenpairs(product, start_of(3), 3)
    assert [(pair.eigenvalue, pair.residual, pair.has_settled) for pair in pairs] == [(0.0, 0.0, True)] * 3
    # One shows that the space is exhausted, one is the vector's own.
    assert len(count) == 6


def test_more_eigenvalues_than_the_rank() -> None:
    matrix = matrix_of([7.0, -2.0, *[0.0] * 28])
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(30), 4)
    assert values_of(pairs) == pytest.approx([7.0, -2.0, 0.0, 0.0], abs=1e-10)
    assert all(pair.has_settled and pair.iterations <= 5 for pair in pairs)


def test_a_single_parameter() -> None:
    (pair,) = top_eigenpairs(lambda v: -4 * v, lambda _: torch.ones(1).double(), 1)
    assert (pair.eigenvalue, pair.has_settled) == (-4.0, True)


def test_single_precision() -> None:
    matrix = matrix_of([8.0, -7.9, *np.linspace(-1, 1, 198)]).float()
    pairs = top_eigenpairs(lambda v: matrix @ v, start_of(200, torch.float32), 2)
    assert values_of(pairs) == pytest.approx([8.0, -7.9], abs=1e-4)
    assert all(pair.has_settled for pair in pairs)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-60, 60), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 99))
def test_whatever_the_spectrum(eigenvalues: list[int], count: int, seed: int) -> None:
    matrix = matrix_of([float(value) for value in eigenvalues])
    count = min(count, len(eigenvalues))

    def start(index: int) -> Tensor:
        return random_vector(len(eigenvalues), torch.float64, torch.device("cpu"), seed, index)

    pairs = top_eigenpairs(lambda v: matrix @ v, start, count, 1e-6, 500, 8)
    magnitudes = sorted((abs(value) for value in eigenvalues), reverse=True)[:count]
    assert [abs(pair.eigenvalue) for pair in pairs] == pytest.approx(magnitudes, abs=1e-6)
    assert all(pair.has_settled for pair in pairs)


@pytest.mark.parametrize("wrong", [{"max_iterations": 0}, {"basis": 5}])
def test_arguments_that_allow_nothing(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        top_eigenpairs(lambda v: v, start_of(3), 1, **wrong)

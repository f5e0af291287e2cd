"""The step-up function by direction, against values worked out by hand and dense linear algebra."""

from __future__ import annotations

import pytest
import torch

from hpclbfl.gradients.gradient import Gradient
from tests.gradients.teacher.worked import applied, found_of, layout_of, taught


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SUBSPACE = {"kind": "subspace", "factor": 4.0}
LAYOUT = layout_of((6, 8), (3,))


def test_factor_one_in_the_critical_directions_and_x_elsewhere() -> None:
    """Clients differ along axis 0 most, then along axis 1: with r = 1 axis 0 alone is critical."""
    layout = layout_of((3,))
    eye = torch.eye(3, dtype=torch.float64)
    found = found_of(layout, [3 * eye[0], -3 * eye[0], eye[1], -eye[1]], [1] * 4)
    teacher, state, _ = taught(layout, found, **SUBSPACE, rank=1)
    gradient, told = applied(teacher, state, Gradient(torch.tensor([2.0, 1.0, 3.0]).double(), layout), 4)
    assert gradient.factor is not None
    torch.testing.assert_close(gradient.factor * gradient.flat, torch.tensor([2.0, 4.0, 12.0]).double())
    # Of 4 + 1 + 9 the first axis has 4; the rest is changed by three times itself.
    assert told["teacher share"].item() == pytest.approx(4 / 14)
    assert told["teacher noise"].item() == pytest.approx(9 * 10 / 14)


def test_it_equals_dense_linear_algebra_although_the_directions_are_compressed() -> None:
    found = found_of(LAYOUT, list(randn(6, 51)), [4] * 6)
    teacher, state, _ = taught(LAYOUT, found, **SUBSPACE, rank=3)
    v = teacher.factors.decode(state.directions)
    flat = randn(51, seed=9)
    gradient, _ = applied(teacher, state, Gradient(flat, LAYOUT), 24)
    expected = 4 * flat - 3 * v.T @ torch.linalg.solve(v @ v.T, v @ flat)
    assert gradient.factor is not None
    torch.testing.assert_close(gradient.factor * gradient.flat, expected)
    inside = randn(3, seed=1) @ v
    unchanged, _ = applied(teacher, state, Gradient(inside, LAYOUT), 24)
    assert unchanged.factor is not None
    torch.testing.assert_close(unchanged.factor * unchanged.flat, inside)


def test_the_directions_are_the_leading_singular_vectors() -> None:
    """Residuals of rank 2 in the layer and few of them: nothing is lost in compressing."""
    found = found_of(LAYOUT, [flat * (1 + 4 * (i < 2)) for i, flat in enumerate(low_rank(5))], [4] * 5)
    teacher, state, _ = taught(LAYOUT, found, **SUBSPACE, rank=2)
    residuals = teacher.factors.decode(state.entries.rows)[:5]
    leading = torch.linalg.svd(residuals, full_matrices=False).Vh[:2]
    v = teacher.factors.decode(state.directions)
    torch.testing.assert_close((leading @ v.T).abs(), torch.eye(2, dtype=torch.float64))


def low_rank(count: int) -> torch.Tensor:
    left, right = randn(6, 2, seed=2), randn(2, 8, seed=3)
    return torch.cat([randn(count, 3), (left @ randn(count, 2, 2, seed=4) @ right).flatten(1)], 1)


def test_a_factor_of_one_passes_bit_for_bit() -> None:
    teacher, state, _ = taught(
        LAYOUT, found_of(LAYOUT, list(randn(4, 51)), [4] * 4), kind="subspace", factor=1.0, rank=3
    )
    gradient = Gradient(randn(51, seed=9), LAYOUT)
    assert applied(teacher, state, gradient, 16) == (gradient, {})


def test_without_directions_it_is_x_everywhere_bit_for_bit() -> None:
    """Equal clients: V = 0."""
    flat = torch.full((51,), 0.5, dtype=torch.float64)
    teacher, state, _ = taught(LAYOUT, found_of(LAYOUT, [flat] * 4, [4] * 4), **SUBSPACE)
    assert not teacher.factors.decode(state.directions).any()
    values = randn(51, seed=9)
    gradient, told = applied(teacher, state, Gradient(values, LAYOUT), 16)
    assert torch.equal(gradient.flat, values) and gradient.factor is not None and gradient.factor.item() == 4.0
    assert told["teacher share"].item() == 0


def test_before_its_training_it_changes_nothing() -> None:
    teacher, _, _ = taught(LAYOUT, found_of(LAYOUT, list(randn(4, 51)), [4] * 4), **SUBSPACE)
    gradient = Gradient(randn(51, seed=9), LAYOUT)
    assert applied(teacher, teacher.init(LAYOUT, 4), gradient, 16) == (gradient, {})


def test_more_directions_than_residuals_span_what_there_is() -> None:
    """Four residuals that sum to 0 span three dimensions."""
    teacher, state, _ = taught(LAYOUT, found_of(LAYOUT, list(randn(4, 51)), [4] * 4), **SUBSPACE, rank=10)
    v = teacher.factors.decode(state.directions)
    assert torch.linalg.matrix_rank(v).item() in (3, 4) and torch.isfinite(state.inverse).all()
    assert not v[4:].any()


def test_fresh_residuals_in_the_directions_are_predicted() -> None:
    layout = layout_of((3,))
    eye = torch.eye(3, dtype=torch.float64)
    learnt = found_of(layout, [eye[0], -eye[0]], [1, 1])
    fresh = found_of(layout, [eye[0] + 2 * eye[1], -eye[0] - 2 * eye[1]], [1, 1])
    _, _, told = taught(layout, [learnt, fresh], **SUBSPACE)
    assert told["teacher error"].item() == pytest.approx(4 / 5)

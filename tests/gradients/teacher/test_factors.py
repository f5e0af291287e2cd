"""The low-rank factors: what they keep, and what is computed from them against the gradients in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.teacher.factors import Factors
from tests.gradients.teacher.worked import layout_of

SHAPES = ((6, 2, 3, 2), (6,), (8, 9), (2, 3))
"""Factored as 6 x 12 and 8 x 9; whole: 6, and 2 x 3, whose factors would be no smaller."""


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def encoded(factors: Factors, flats: torch.Tensor):  # type: ignore[no-untyped-def]
    rows = factors.zeros(len(flats))
    norms = [
        factors.encode(Gradient(flat, factors.layout).tensors, rows.cut(i, i + 1, factors.rho))
        for i, flat in enumerate(flats)
    ]
    return rows, torch.stack(norms)


def test_what_is_factored_and_what_stays_whole() -> None:
    factors = Factors(layout_of(*SHAPES), rho=2)
    assert (factors.thin_width, factors.whole_width) == (6 + 12 + 8 + 9, 6 + 6)
    assert factors.width == 2 * 35 + 12


def test_a_gradient_of_rank_rho_is_kept_exactly() -> None:
    layout = layout_of(*SHAPES)
    factors = Factors(layout, rho=2)
    flats = randn(3, layout.size)
    for flat in flats:
        for layer, rows, cols in ((0, 6, 12), (2, 8, 9)):
            flat[layout.slices[layer]] = (randn(rows, 2, seed=rows) @ randn(2, cols, seed=cols)).reshape(-1)
    rows, norms = encoded(factors, flats)
    torch.testing.assert_close(factors.decode(rows), flats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norms, flats.square().sum(1))


def test_products_of_encoded_gradients_equal_those_of_the_decoded() -> None:
    layout = layout_of(*SHAPES)
    factors = Factors(layout, rho=2)
    rows, _ = encoded(factors, randn(5, layout.size))
    dense = factors.decode(rows)
    torch.testing.assert_close(factors.gram(rows, rows), dense @ dense.T)
    others, _ = encoded(factors, randn(2, layout.size, seed=1))
    torch.testing.assert_close(factors.gram(rows, others), dense @ factors.decode(others).T)
    gradient = Gradient(randn(layout.size, seed=2), layout)
    torch.testing.assert_close(factors.products(gradient, rows), dense @ gradient.flat)
    weights = randn(5, seed=3)
    expected = gradient.flat + weights @ dense
    edited = gradient.edited()
    factors.add_(edited, rows, weights)
    torch.testing.assert_close(edited.flat, expected)
    picked = factors.pick(rows, [3, 1])
    torch.testing.assert_close(factors.decode(picked), dense[[3, 1]])


def test_the_power_iteration_finds_the_leading_part() -> None:
    """Singular values 8, 4, 1/2, 1/4: two iterations from a random start keep nearly all of 80 of 80.3."""
    layout = layout_of((40, 30))
    factors = Factors(layout, rho=2)
    left, right = (torch.linalg.qr(randn(n, 4, seed=n)).Q for n in (40, 30))
    flat = ((left * torch.tensor([8.0, 4.0, 0.5, 0.25])) @ right.T).reshape(-1)
    rows, norms = encoded(factors, flat.unsqueeze(0))
    assert norms.item() == pytest.approx(80.3125)
    assert factors.gram(rows, rows).item() == pytest.approx(80.0, rel=1e-3)


def test_weighted_sums_are_encoded_without_decoding() -> None:
    """Of entries that share their factors a sum has rank 2 again, and is exact."""
    layout = layout_of((7, 9), (3,))
    factors = Factors(layout, rho=2)
    left, right = randn(7, 2), randn(2, 9, seed=1)
    cores = randn(4, 2, 2, seed=2)
    flats = torch.cat([randn(4, 3, seed=3), (left @ cores @ right).flatten(1)], 1)
    rows, _ = encoded(factors, flats)
    weights = randn(3, 4, seed=4)
    torch.testing.assert_close(factors.decode(factors.combine(rows, weights)), weights @ flats)


def test_rows_of_zeros_are_kept_as_zeros() -> None:
    layout = layout_of(*SHAPES)
    factors = Factors(layout, rho=2)
    rows, norms = encoded(factors, torch.zeros(1, layout.size, dtype=torch.float64))
    assert not factors.decode(rows).any() and not norms.any()
    assert np.isfinite(rows.thin.numpy()).all()

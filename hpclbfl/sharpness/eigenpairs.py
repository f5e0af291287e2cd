"""The eigenvalues of a symmetric operator that are largest in magnitude, by one Lanczos run each (deflation).

Each run is orthogonal to the eigenvectors that are already known and has its own start vector: from a single start
vector, a multiple eigenvalue is found only once. ARPACK (scipy's eigsh) is not used: it refuses an operator that is
zero and one whose eigenvalues are all wanted, and has no results where it is stopped before it has converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpclbfl.sharpness.lanczos import Krylov, Product, rounding

BASIS = 20
"""Lanczos vectors of a run before it restarts with half as many Ritz vectors."""
LEAST_BASIS = 6
_GROWTH = 10
"""How far the outermost Ritz value may still grow, in residuals: the eigenvalue within one may not be the outermost."""


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue, converged or not."""

    eigenvalue: float
    """Rayleigh quotient v.Hv, signed."""
    vector: Tensor
    """[P], of norm 1, in the host's memory."""
    residual: float
    """|Hv - eigenvalue v|: H has an eigenvalue within this distance."""
    iterations: int
    """Products with H in its run."""
    has_settled: bool
    """The residual is within the tolerance, and according to the run the other end of the spectrum is closer to 0."""


@dataclass(frozen=True)
class _Found:
    vector: Tensor
    image: Tensor
    iterations: int
    is_sure: bool


def top_eigenpairs(
    product: Product,
    start: Callable[[int], Tensor],
    count: int,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    basis: int = BASIS,
    on_found: Callable[[float, int], None] = lambda value, iterations: None,
) -> list[Eigenpair]:
    """The `count` eigenvalues that are largest in magnitude, in that order.

    Args:
        start: start vector [P] of each run, not zero, by its index.
        count: from 1 to P.
        tolerance: largest residual relative to the eigenvalue's magnitude at which a run has converged, down to the
            rounding error of the largest eigenvalue.
        max_iterations: products at which a run ends in any case; at least 1.
        basis: Lanczos vectors of a run, at least LEAST_BASIS; they are in the host's memory, with two vectors for each
            eigenvalue found.
        on_found: is called with the value and the products of each as it is found.
    """
    if max_iterations < 1 or basis < LEAST_BASIS:
        raise ValueError(f"max_iterations is {max_iterations}, at least 1; basis is {basis}, at least {LEAST_BASIS}")
    first = start(0)
    vectors, images = (torch.empty(count, len(first), dtype=first.dtype) for _ in range(2))
    found: list[_Found] = []
    largest = 0.0
    # The final Rayleigh-Ritz step mixes the residuals of close eigenvalues.
    within = tolerance if count == 1 else tolerance / (2 * count**0.5)
    for index in range(count):
        space = Krylov(product, start(index), basis, vectors[:index], rounding(first.dtype) * largest)
        one = _largest(product, space, first, within, max_iterations)
        vectors[index], images[index] = one.vector, one.image
        found.append(one)
        value = float(torch.dot(one.vector, one.image))
        largest = max(largest, abs(value))
        on_found(value, one.iterations)
    return _ordered(vectors, images, found, tolerance)


def _largest(product: Product, space: Krylov, like: Tensor, tolerance: float, max_iterations: int) -> _Found:
    """The eigenvector of the largest eigenvalue, in magnitude, that is not known yet."""
    is_sure, coefficients = False, np.zeros(0)
    # The last product is for the vector that is found: its residual is computed, not estimated.
    while space.num_products < max_iterations - 1 and not is_sure:
        if space.is_full:
            space.restart()
        space.grow()
        ritz = space.ritz()
        ends = np.abs(ritz.values[[0, -1]])
        top, other = (0, -1) if ends[0] > ends[1] else (-1, 0)
        magnitude = abs(ritz.values[top])
        small = max(tolerance, rounding(like.dtype)) * magnitude
        # While its residual is large, the other end of the spectrum may still turn out to be larger.
        growth = _GROWTH * ritz.residuals[other]
        has_rival = growth > small and abs(ritz.values[other]) + growth > magnitude
        is_sure = space.is_exhausted or bool(ritz.residuals[top] <= small and not has_rival)
        coefficients = ritz.vectors[:, top]
    vector = space.vector(coefficients)
    image = product(vector.to(like.device)).cpu()
    return _Found(vector, image, space.num_products + 1, is_sure)


def _ordered(vectors: Tensor, images: Tensor, found: list[_Found], tolerance: float) -> list[Eigenpair]:
    """Rayleigh-Ritz on the space of all vectors that were found, which separates those of close eigenvalues."""
    projected = (vectors @ images.T).double().numpy()
    values, rotation = np.linalg.eigh((projected + projected.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")
    noise = rounding(vectors.dtype) * float(np.abs(values).max())
    pairs = []
    for place in order:
        share = torch.from_numpy(rotation[:, place].copy()).to(vectors.dtype)
        # Attributed to the run whose vector has the largest share.
        run = found[int(np.argmax(np.abs(rotation[:, place])))]
        value, vector = float(values[place]), share @ vectors
        residual = float(torch.linalg.vector_norm(share @ images - value * vector))
        has_settled = run.is_sure and residual <= max(tolerance * abs(value), noise)
        pairs.append(Eigenpair(value, vector, residual, run.iterations, has_settled))
    return pairs

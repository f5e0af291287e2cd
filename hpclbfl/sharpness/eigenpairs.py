"""The eigenvalues of a symmetric operator that are largest in magnitude, one Lanczos run for each.

Each run is orthogonal to the eigenvectors that are known already, and starts from a vector of its own: a single one
sees an eigenvalue once, however many eigenvectors belong to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpclbfl.sharpness.lanczos import Krylov, Product, rounding

BASIS = 20
"""Lanczos vectors that a run keeps before it restarts from the better half of them."""
LEAST_BASIS = 6
_GROWTH = 10
"""Residuals by which the outermost Ritz value may still grow: some eigenvalue is within one, but not the outermost."""


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue as far as it was found."""

    value: float
    """Rayleigh quotient v.Hv, with its sign."""
    vector: Tensor
    """[P], of norm 1, in the host's memory."""
    residual: float
    """|Hv - value v|: some eigenvalue of H is no farther from `value` than this."""
    iterations: int
    """Products with H that its run took."""
    has_settled: bool
    """The residual is within the tolerance, and the other end of the spectrum is closer to 0 as far as its run saw."""


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
        start: [P], not zero, of the run for each, by its index.
        count: from 1 to P.
        tolerance: a run ends once its residual is no larger than this share of the eigenvalue's magnitude, or than
            what rounding leaves of the largest one.
        max_iterations: products at which a run ends, settled or not; at least 1.
        basis: Lanczos vectors that a run keeps, at least LEAST_BASIS; with two vectors for each eigenvalue that is
            found they lie in the host's memory.
        on_found: told the value and the products of each as it is found.
    """
    if max_iterations < 1 or basis < LEAST_BASIS:
        raise ValueError(f"max_iterations is {max_iterations}, at least 1; basis is {basis}, at least {LEAST_BASIS}")
    first = start(0)
    vectors, images = (torch.empty(count, len(first), dtype=first.dtype) for _ in range(2))
    found: list[_Found] = []
    largest = 0.0
    # Near eigenvalues share the residuals of their runs when their vectors are told apart in the end.
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
    """The largest eigenvalue, in magnitude, that is not known yet."""
    is_sure, coefficients = False, np.zeros(0)
    # One product is left for the vector that is found: its residual is measured, not estimated.
    while space.num_products < max_iterations - 1 and not is_sure:
        if space.is_full:
            space.restart()
        space.grow()
        ritz = space.ritz()
        ends = np.abs(ritz.values[[0, -1]])
        top, other = (0, -1) if ends[0] > ends[1] else (-1, 0)
        magnitude = abs(ritz.values[top])
        small = max(tolerance, rounding(like.dtype)) * magnitude
        # The other end of the spectrum still grows while its residual is large, up to a tie within the tolerance.
        growth = _GROWTH * ritz.residuals[other]
        has_rival = growth > small and abs(ritz.values[other]) + growth > magnitude
        is_sure = space.is_exhausted or bool(ritz.residuals[top] <= small and not has_rival)
        coefficients = ritz.vectors[:, top]
    vector = space.vector(coefficients)
    image = product(vector.to(like.device)).cpu()
    return _Found(vector, image, space.num_products + 1, is_sure)


def _ordered(vectors: Tensor, images: Tensor, found: list[_Found], tolerance: float) -> list[Eigenpair]:
    """The eigenpairs on the space of all vectors that were found, which mixes those of near eigenvalues rightly."""
    projected = (vectors @ images.T).double().numpy()
    values, rotation = np.linalg.eigh((projected + projected.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")
    noise = rounding(vectors.dtype) * float(np.abs(values).max())
    pairs = []
    for place in order:
        share = torch.from_numpy(rotation[:, place].copy()).to(vectors.dtype)
        # Its run is the one that found most of it.
        run = found[int(np.argmax(np.abs(rotation[:, place])))]
        value, vector = float(values[place]), share @ vectors
        residual = float(torch.linalg.vector_norm(share @ images - value * vector))
        has_settled = run.is_sure and residual <= max(tolerance * abs(value), noise)
        pairs.append(Eigenpair(value, vector, residual, run.iterations, has_settled))
    return pairs

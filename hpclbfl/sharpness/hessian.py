"""Eigenvalues of a symmetric operator that is known by its products alone: power iteration and Lanczos.

Pure: an operator is a function v [P] -> H v [P]. G. Golub, C. Van Loan, "Matrix Computations", chapters 8 and 10;
for Hessians of nets B. Ghorbani et al., "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
ICML 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v [P] -> H v [P], on one device, of one type."""


@dataclass(frozen=True)
class Eigenpair:
    """What a power iteration came to."""

    value: float
    """Rayleigh quotient v.Hv, with its sign."""
    vector: Tensor
    """[P], of norm 1."""
    residual: float
    """|Hv - value v|: some eigenvalue of H is no farther from `value` than this."""
    iterations: int
    """Products with H that it took."""
    has_settled: bool
    """Whether it ended because the tolerance was met."""


@dataclass(frozen=True)
class Spectrum:
    """Ritz values of H, rising. All arrays are [M], float64."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    """Squared share of the start vector along each; they sum to 1 and are the spectral density seen from there."""
    residuals: NDArray[np.float64]
    """|Hy - value y| of the Ritz vector y."""


def random_vector(size: int, dtype: torch.dtype, device: torch.device, *key: int) -> Tensor:
    """A normal vector [size] that depends on the key (whole numbers) alone, drawn on the CPU for every device."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
    return torch.from_numpy(rng.standard_normal(size)).to(device, dtype)


def power_iteration(
    product: Product,
    start: Tensor,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    known: Sequence[Tensor] = (),
) -> Eigenpair:
    """The eigenvalue that is largest in magnitude among those whose eigenvectors are not known yet.

    It may be negative: the Rayleigh quotient keeps the sign. Two that are as large in magnitude, one of each sign,
    do not converge, which the residual tells.

    Args:
        start: [P], not zero.
        tolerance: ends once the residual, without its part along the known ones, which is their error, is no larger
            than this share of the eigenvalue's magnitude.
        max_iterations: ends then, converged or not.
        known: [P] each, orthonormal; they are deflated: the iteration stays orthogonal to them.
    """
    vector = _normalised(_without(start, known))
    for iteration in range(1, max_iterations + 1):
        image = product(vector)
        value = float(torch.dot(vector, image))
        residual = float(torch.linalg.vector_norm(image - value * vector))
        ahead = _without(image, known)
        has_settled = float(torch.linalg.vector_norm(ahead - value * vector)) <= tolerance * abs(value)
        if has_settled or iteration == max_iterations:
            return Eigenpair(value, vector, residual, iteration, has_settled)
        # Once more, for what rounding leaves of the known ones.
        vector = _normalised(_without(_normalised(ahead), known))
    raise ValueError(f"max_iterations is {max_iterations}; at least 1")


def top_eigenpairs(
    product: Product,
    start: Callable[[int], Tensor],
    count: int,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    on_pair: Callable[[Eigenpair], None] = lambda pair: None,
) -> list[Eigenpair]:
    """The `count` eigenvalues that are largest in magnitude, by power iteration with deflation, in that order.

    Args:
        start: of the iteration for each, by its index.
        on_pair: told of each as it is found.
    """
    found: list[Eigenpair] = []
    for index in range(count):
        known = [pair.vector for pair in found]
        pair = power_iteration(product, start(index), tolerance, max_iterations, known)
        found.append(pair)
        on_pair(pair)
    return found


def lanczos(product: Product, start: Tensor, num_steps: int) -> Spectrum:
    """Eigenvalues of H on the Krylov space of a vector, with full re-orthogonalisation.

    The outermost converge first. Ends early where the space is exhausted.

    Args:
        start: [P], not zero.
        num_steps: M, products with H; the basis [M, P] is kept in the host's memory.
    """
    size, device = len(start), start.device
    num_steps = min(num_steps, size)
    basis = torch.empty(num_steps, size, dtype=start.dtype)
    diagonal: list[float] = []
    beside: list[float] = []
    vector = _normalised(start).cpu()
    exhausted = 100 * torch.finfo(start.dtype).eps
    for step in range(num_steps):
        basis[step] = vector
        image = product(vector.to(device)).cpu()
        # Against all, not the last two alone: rounding would bring converged eigenvectors back as ghosts.
        share = basis[: step + 1] @ image
        image = image - share @ basis[: step + 1]
        diagonal.append(float(share[-1]))
        image = image - (basis[: step + 1] @ image) @ basis[: step + 1]
        beside.append(float(torch.linalg.vector_norm(image)))
        if beside[-1] <= exhausted * max(map(abs, (*diagonal, *beside[:-1]))):
            break
        vector = image / beside[-1]
    tridiagonal = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    values, vectors = np.linalg.eigh(tridiagonal)
    # Rounding of the products allows no smaller one.
    least = torch.finfo(start.dtype).eps * np.abs(values).max()
    return Spectrum(values, vectors[0] ** 2, np.maximum(beside[-1] * np.abs(vectors[-1]), least))


def density(spectrum: Spectrum, num_points: int = 400, width: float | None = None) -> dict[str, NDArray[Any]]:
    """The spectral density as a smooth curve: a normal density at every Ritz value, times its weight.

    Args:
        width: standard deviation of each; default: 1 % of the span of the Ritz values.

    Returns:
        eigenvalue and density (per unit of eigenvalue; its integral is 1), both [num_points].
    """
    low, high = float(spectrum.values[0]), float(spectrum.values[-1])
    if width is None:
        width = 0.01 * ((high - low) or abs(high) or 1.0)
    grid = np.linspace(low - 4 * width, high + 4 * width, num_points)
    distance = (grid[:, None] - spectrum.values) / width
    curve = (np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))) @ spectrum.weights
    return {"eigenvalue": grid, "density": curve}


def _normalised(vector: Tensor) -> Tensor:
    norm = float(torch.linalg.vector_norm(vector))
    if not norm > 0.0:
        raise ValueError("a vector is zero or not finite")
    return vector / norm


def _without(vector: Tensor, known: Sequence[Tensor]) -> Tensor:
    for direction in known:
        vector = vector - torch.dot(direction, vector) * direction
    return vector

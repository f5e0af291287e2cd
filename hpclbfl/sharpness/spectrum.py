"""The spectrum of a symmetric operator by stochastic Lanczos quadrature, averaged over start vectors, with its error.

The weight of an eigenvalue from one start vector may be several times too large or too small; the mean over vectors is
unbiased, and their spread gives its standard error. G. Golub, G. Meurant,
"Matrices, Moments and Quadrature with Applications", 2010; for Hessians of nets B. Ghorbani et al., "An Investigation
into Neural Net Optimization via Hessian Eigenvalue Density", ICML 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.sharpness.lanczos import Krylov, Product, rounding

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Quadrature:
    """The spectrum from one start vector. All arrays are [M], values increasing."""

    values: FloatArray
    """Ritz values."""
    weights: FloatArray
    """Squared component of the start vector along each Ritz vector; they sum to 1."""
    residuals: FloatArray
    """|Hy - value y| of the Ritz vector y."""


@dataclass(frozen=True)
class Weights:
    """Disjoint intervals around the Ritz values, their residuals included, and the share of the spectrum in each.

    Arrays are [G], increasing.
    """

    values: FloatArray
    """Weighted mean of the Ritz values in each."""
    low: FloatArray
    high: FloatArray
    """Ends of the intervals."""
    shares: FloatArray
    """[V, G] share of the spectrum from each start vector; sums to 1 over the intervals."""


@dataclass(frozen=True)
class Spectrum:
    """Quadratures from V start vectors."""

    quadratures: tuple[Quadrature, ...]
    size: int
    """P: number of eigenvalues."""
    resolution: float
    """Distance, relative to the largest magnitude, at which Ritz values are equal: rounding error of the products."""

    def trace(self) -> tuple[float, float]:
        """Sum of all eigenvalues, and its standard error."""
        moments = np.array([q.weights @ q.values for q in self.quadratures])
        mean, error = mean_and_error(self.size * moments)
        return float(mean), float(error)

    def weights(self) -> Weights:
        """The shares of the spectrum in the intervals that all start vectors resolve."""
        values = np.concatenate([q.values for q in self.quadratures])
        weights = np.concatenate([q.weights for q in self.quadratures])
        vector = np.repeat(range(len(self.quadratures)), [len(q.values) for q in self.quadratures])
        reach = np.concatenate([q.residuals for q in self.quadratures])
        reach = np.maximum(reach, self.resolution * np.abs(values).max())
        order = np.argsort(values - reach, kind="stable")
        # An interval ends where the next one begins above all ends so far.
        ends = np.maximum.accumulate((values + reach)[order])
        begins = (values - reach)[order]
        part = np.zeros(len(values), np.int64)
        part[order] = np.concatenate([[0], np.cumsum(begins[1:] > ends[:-1])])
        count = int(part.max()) + 1
        shares = np.zeros((len(self.quadratures), count))
        np.add.at(shares, (vector, part), weights)
        total = np.bincount(part, weights, count)
        # Without any weight: the plain mean.
        even = np.bincount(part, values, count) / np.bincount(part, minlength=count)
        middle = np.divide(np.bincount(part, weights * values, count), total, out=even, where=total > 0)
        low, high = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(low, part, values - reach)
        np.maximum.at(high, part, values + reach)
        return Weights(middle, low, high, shares)

    def density(self, num_points: int = 400, width: float | None = None) -> dict[str, NDArray[Any]]:
        """The spectral density as a smooth curve: a weighted sum of normal densities at the Ritz values.

        Args:
            width: standard deviation of each; default: 1 % of the span of the Ritz values.

        Returns:
            eigenvalue, density (per unit of eigenvalue; its integral is 1) and its standard error, each [num_points].
        """
        low = min(float(q.values[0]) for q in self.quadratures)
        high = max(float(q.values[-1]) for q in self.quadratures)
        if width is None:
            width = 0.01 * ((high - low) or abs(high) or 1.0)
        grid = np.linspace(low - 4 * width, high + 4 * width, num_points)
        curves = []
        for one in self.quadratures:
            distance = (grid[:, None] - one.values) / width
            curves.append((np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))) @ one.weights)
        mean, error = mean_and_error(np.array(curves))
        return {"eigenvalue": grid, "density": mean, "error": error}


def quadrature(product: Product, start: Tensor, num_steps: int) -> Quadrature:
    """The spectrum from one start vector. Ends early where the Krylov space is exhausted.

    Args:
        start: [P], not zero; normal, for unbiased weights.
        num_steps: M, products with H; the basis [M, P] is kept in the host's memory.
    """
    space = Krylov(product, start, num_steps)
    while not (space.is_full or space.is_exhausted):
        space.grow()
    ritz = space.ritz()
    return Quadrature(ritz.values, ritz.vectors[0] ** 2, ritz.residuals)


def resolution(dtype: torch.dtype) -> float:
    """See `Spectrum.resolution`: products of a net's loss lose one digit more than a single rounding."""
    return 10 * rounding(dtype)


def mean_and_error(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean over the first axis and its standard error; NaN from one sample."""
    count = len(samples)
    mean = samples.mean(axis=0)
    error = samples.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full_like(mean, np.nan)
    return mean, error

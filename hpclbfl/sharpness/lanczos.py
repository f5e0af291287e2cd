"""Lanczos with full reorthogonalisation: an orthonormal basis of a Krylov space, and an operator projected onto it.

A symmetric operator is a function v [P] -> H v [P]. G. Golub, C. Van Loan, "Matrix Computations", chapter 10; K. Wu,
H. Simon, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM J. Matrix Anal. 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v [P] -> H v [P], same device and type."""
_COLUMNS = 2**18
"""Columns of the basis that a restart combines at a time."""


def rounding(dtype: torch.dtype) -> float:
    """Rounding error of a product, relative to H's largest eigenvalue."""
    return 100 * float(torch.finfo(dtype).eps)


def random_vector(size: int, dtype: torch.dtype, device: torch.device, *key: int) -> Tensor:
    """A normal vector [size] that depends only on the key (integers), not on the device."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
    return torch.from_numpy(rng.standard_normal(size)).to(device, dtype)


@dataclass(frozen=True)
class Ritz:
    """H projected onto a space of n dimensions."""

    values: NDArray[np.float64]
    """[n], increasing."""
    vectors: NDArray[np.float64]
    """[n, n]; column k is the Ritz vector of value k, in the space's basis."""
    residuals: NDArray[np.float64]
    """[n] |Hy - value y| of each Ritz vector y: H has an eigenvalue within this distance."""


class Krylov:
    """A Krylov space of H, which grows by one product at a time.

    Args:
        start: [P], not zero; products are of its type and on its device.
        rows: largest number of basis vectors; [rows, P] of the start's type is kept in the host's memory.
        known: [K, P] orthonormal, in the host's memory: the space is kept orthogonal to them (deflation).
        noise: an image H v of at most this norm is rounding error.
    """

    def __init__(
        self, product: Product, start: Tensor, rows: int, known: Tensor | None = None, noise: float = 0.0
    ) -> None:
        self._product, self._device, self._noise = product, start.device, noise
        self._known = torch.empty(0, len(start), dtype=start.dtype) if known is None else known
        self._basis = torch.empty(min(rows, len(start)), len(start), dtype=start.dtype)
        self._matrix = np.zeros((len(self._basis), len(self._basis)))
        # Twice, because of rounding errors.
        self._next = _normalised(_without(_normalised(_without(start.cpu(), self._known)), self._known))
        self._beta = 0.0
        """Norm of the next, unnormalised Lanczos vector."""
        self.size = 0
        """Dimensions, n."""
        self.num_products = 0
        self.is_exhausted = False
        """The space is invariant under H: its Ritz values are eigenvalues."""

    @property
    def is_full(self) -> bool:
        """There is no room for another basis vector."""
        return self.size == len(self._basis)

    def grow(self) -> None:
        """Add one dimension by one product. The space must be neither full nor exhausted."""
        place = self.size
        self._basis[place] = self._next
        basis = self._basis[: place + 1]
        image = _without(self._product(self._next.to(self._device)).cpu(), self._known)
        # Against all, not only the last two: rounding errors would produce copies of converged eigenvectors.
        share = basis @ image
        image = image - share @ basis
        image = _without(_without(image, basis), self._known)
        self._matrix[: place + 1, place] = self._matrix[place, : place + 1] = share.double().numpy()
        self.size, self.num_products = place + 1, self.num_products + 1
        self._beta = float(torch.linalg.vector_norm(image))
        small = max(self._noise, rounding(image.dtype) * float(np.abs(self._matrix).max()))
        self.is_exhausted = self._beta <= small or self.size + len(self._known) >= len(image)
        if not self.is_exhausted:
            self._next = image / self._beta

    def ritz(self) -> Ritz:
        """Rayleigh-Ritz values on the space; it has at least one dimension."""
        values, vectors = np.linalg.eigh(self._matrix[: self.size, : self.size])
        # Rounding errors of the products are at least this large.
        least = float(torch.finfo(self._basis.dtype).eps) * np.abs(values).max()
        return Ritz(values, vectors, np.maximum(self._beta * np.abs(vectors[-1]), least))

    def vector(self, coefficients: NDArray[np.float64]) -> Tensor:
        """[P] of norm 1, in host memory, with coefficients [n] in the basis; of an empty space its start vector."""
        if not self.size:
            return self._next
        return _normalised(torch.from_numpy(coefficients).to(self._basis.dtype) @ self._basis[: self.size])

    def restart(self) -> None:
        """Keep the Ritz vectors of half of the values, the largest in magnitude and both ends, and drop the others."""
        ritz = self.ritz()
        largest = np.argsort(-np.abs(ritz.values), kind="stable")[: self.size // 2]
        kept = np.unique([0, *largest, self.size - 1])
        rotation = torch.from_numpy(ritz.vectors[:, kept].T.copy()).to(self._basis.dtype)
        for part in self._basis.split(_COLUMNS, dim=1):
            part[: len(kept)] = rotation @ part[: self.size]
        self._matrix[:] = 0.0
        self._matrix[range(len(kept)), range(len(kept))] = ritz.values[kept]
        # The next vector stays; its product restores its coupling with the vectors that were kept.
        self.size = len(kept)


def _normalised(vector: Tensor) -> Tensor:
    norm = float(torch.linalg.vector_norm(vector))
    if not norm > 0.0:
        raise ValueError("a vector is zero or not finite")
    return vector / norm


def _without(vector: Tensor, rows: Tensor) -> Tensor:
    """The part of a vector [P] orthogonal to orthonormal rows [K, P]."""
    return vector - (rows @ vector) @ rows

"""Gradients as factors of low rank: the linear encoder of the teacher, and what is computed without decoding.

A parameter of two and more dimensions is a matrix [rows, cols] with its first dimension as rows; of a gradient's part R
there remains P Q^T with P [rows, rho] orthonormal and Q = R^T P [cols, rho], from a power iteration that starts at the
same seeded matrix for every gradient (T. Vogels et al., "PowerSGD", NeurIPS 2019, without its feedback of errors).
Parameters of one dimension, and matrices whose factors would be no smaller, are kept whole.

K gradients take two tensors: `thin` [K rho, F'], whose row k rho + i holds column i of all P, then of all Q, of
gradient k; and `whole` [K, W]. A layer's factors are then a matrix that BLAS takes as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpclbfl.core.state import checkpointed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

ITERATIONS = 2
"""Of the power iteration."""
_START_STREAM = 7


@checkpointed
@dataclass(frozen=True)
class Rows:
    """Some encoded gradients, K of them."""

    thin: Tensor
    """[K rho, F']"""
    whole: Tensor
    """[K, W]"""

    def cut(self, begin: int, end: int, rho: int) -> Rows:
        """Views of some of them."""
        return Rows(self.thin[begin * rho : end * rho], self.whole[begin:end])


@dataclass(frozen=True)
class _Matrix:
    """A parameter that is factored."""

    layer: int
    rows: int
    cols: int
    p: slice
    """Of a row of `thin`."""
    q: slice


class Factors:
    """Encodes gradients of one layout.

    Args:
        layout: of the parameters.
        rho: the rank, at least 1.
    """

    def __init__(self, layout: Layout, rho: int) -> None:
        self.layout, self.rho = layout, rho
        sizes = [(shape[0] if shape else 1, math.prod(shape[1:])) for shape in layout.shapes]
        factored = [
            len(shape) > 1 and rho * (rows + cols) < rows * cols
            for shape, (rows, cols) in zip(layout.shapes, sizes, strict=True)
        ]
        middle = sum(rows for is_factored, (rows, _) in zip(factored, sizes, strict=True) if is_factored)
        p, q, w = 0, middle, 0
        self._matrices: list[_Matrix] = []
        self._wholes: list[tuple[int, slice]] = []
        for layer, (is_factored, (rows, cols)) in enumerate(zip(factored, sizes, strict=True)):
            if is_factored:
                self._matrices.append(_Matrix(layer, rows, cols, slice(p, p + rows), slice(q, q + cols)))
                p, q = p + rows, q + cols
            else:
                self._wholes.append((layer, slice(w, w + rows * cols)))
                w += rows * cols
        self._middle = middle
        self._starts: dict[int, Tensor] = {}
        self.thin_width, self.whole_width = q, w
        """F' and W."""

    @property
    def width(self) -> int:
        """F: numbers of one encoded gradient."""
        return self.rho * self.thin_width + self.whole_width

    def zeros(self, count: int) -> Rows:
        """So many rows of zeros."""
        return Rows(self._zeros(count * self.rho, self.thin_width), self._zeros(count, self.whole_width))

    def encode(self, layers: Iterable[Tensor], out: Rows, scale: float = 1.0) -> Tensor:
        """Encode one gradient.

        Args:
            layers: [L] its parts, in the order of the net; read one after the other, so a generator will do.
            out: one row, which is overwritten.
            scale: what the gradient is multiplied with.

        Returns:
            its squared norm, times that of the scale; 0-d, float64
        """
        matrices = {matrix.layer: matrix for matrix in self._matrices}
        wholes = dict(self._wholes)
        total = torch.zeros((), dtype=torch.float64, device=self.layout.device)
        for layer, part in enumerate(layers):
            flat = part.reshape(-1)
            total = total + flat.dot(flat)
            if layer in wholes:
                out.whole[0, wholes[layer]] = flat * scale
                continue
            matrix = matrices[layer]
            values = part.reshape(matrix.rows, matrix.cols)
            # Factors lie as rows: BLAS takes a tenth of the time for a few rows times a matrix that it takes for a
            # matrix times a few columns.
            q = self._start(matrix)
            for _ in range(ITERATIONS):
                p = torch.linalg.qr((q @ values.T).T).Q.T.contiguous()
                q = p @ values
            out.thin[:, matrix.p], out.thin[:, matrix.q] = p, q * scale
        return total * scale**2

    def combine(self, rows: Rows, weights: Tensor) -> Rows:
        """[r] weighted sums of encoded gradients, each encoded again; without decoding any.

        Args:
            rows: K of them.
            weights: [r, K]
        """
        count, rho = len(weights), self.rho
        weights = weights.to(rows.whole)
        found = self.zeros(count)
        torch.mm(weights, rows.whole, out=found.whole)
        # [K rho, r]: what a sum's factor p is multiplied with.
        spread = weights.T.repeat_interleave(rho, 0)
        for matrix in self._matrices:
            p, q = rows.thin[:, matrix.p], rows.thin[:, matrix.q]
            right = self._start(matrix).T.expand(count, -1, -1)
            for _ in range(ITERATIONS + 1):
                # [r, K rho, rho], then [r, rows, rho]
                left = torch.linalg.qr(p.T @ (spread.T.unsqueeze(2) * (q @ right))).Q
                right = q.T @ (spread.T.unsqueeze(2) * (p @ left))
            found.thin[:, matrix.p] = left.transpose(1, 2).reshape(count * rho, matrix.rows)
            found.thin[:, matrix.q] = right.transpose(1, 2).reshape(count * rho, matrix.cols)
        return found

    def gram(self, rows: Rows, others: Rows) -> Tensor:
        """[K, K'] inner products, float64: of P Q^T and R S^T it is the sum of (P^T R) * (Q^T S)."""
        rho = self.rho
        found = (rows.whole @ others.whole.T).double()
        for matrix in self._matrices:
            p = rows.thin[:, matrix.p] @ others.thin[:, matrix.p].T
            q = rows.thin[:, matrix.q] @ others.thin[:, matrix.q].T
            found += (p.double() * q).view(len(rows.whole), rho, len(others.whole), rho).sum((1, 3))
        return found

    def products(self, gradient: Gradient, rows: Rows) -> Tensor:
        """[K] inner products of a gradient's values with encoded ones, float64."""
        tensors, rho = gradient.tensors, self.rho
        found = torch.zeros(len(rows.whole), dtype=torch.float64, device=rows.whole.device)
        if self.whole_width:
            found += rows.whole @ torch.cat([tensors[layer].reshape(-1) for layer, _ in self._wholes])
        for matrix in self._matrices:
            values = tensors[matrix.layer].reshape(matrix.rows, matrix.cols)
            image = rows.thin[:, matrix.q] @ values.T
            found += (image * rows.thin[:, matrix.p]).sum(1).view(-1, rho).sum(1)
        return found

    def add_(self, gradient: Gradient, rows: Rows, weights: Tensor) -> None:
        """Add a weighted sum of encoded gradients to an `edited` gradient's values.

        Args:
            rows: K of them.
            weights: [K]
        """
        tensors, weights = gradient.tensors, weights.to(rows.whole)
        # One copy of the left factors, scaled; the sum then is one product for each layer.
        left = rows.thin[:, : self._middle] * weights.repeat_interleave(self.rho).unsqueeze(1)
        for matrix in self._matrices:
            values = tensors[matrix.layer].view(matrix.rows, matrix.cols)
            values.addmm_(left[:, matrix.p].T, rows.thin[:, matrix.q])
        if self._wholes:
            total = weights @ rows.whole
            targets = [tensors[layer] for layer, _ in self._wholes]
            torch._foreach_add_(
                targets, [total[at].view_as(t) for t, (_, at) in zip(targets, self._wholes, strict=True)]
            )

    def pick(self, rows: Rows, which: Sequence[int]) -> Rows:
        """A copy of some rows."""
        index = torch.as_tensor(which, dtype=torch.int64)
        thin = (index.unsqueeze(1) * self.rho + torch.arange(self.rho)).reshape(-1)
        device = rows.whole.device
        return Rows(rows.thin.index_select(0, thin.to(device)), rows.whole.index_select(0, index.to(device)))

    def decode(self, rows: Rows) -> Tensor:
        """[K, P] the gradients in full; for tests and small nets."""
        found = self._zeros(len(rows.whole), self.layout.size)
        at = self.layout.slices
        for layer, place in self._wholes:
            found[:, at[layer]] = rows.whole[:, place]
        for matrix in self._matrices:
            p = rows.thin[:, matrix.p].view(-1, self.rho, matrix.rows)
            q = rows.thin[:, matrix.q].view(-1, self.rho, matrix.cols)
            found[:, at[matrix.layer]] = (p.transpose(1, 2) @ q).flatten(1)
        return found

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.layout.dtype, device=self.layout.device)

    def _start(self, matrix: _Matrix) -> Tensor:
        """[rho, cols] where the power iteration of a layer starts; the same on all ranks and in all steps."""
        if matrix.layer not in self._starts:
            key = np.random.SeedSequence(0, spawn_key=(_START_STREAM, matrix.layer))
            draws = np.random.Generator(np.random.Philox(key)).standard_normal((self.rho, matrix.cols))
            self._starts[matrix.layer] = torch.from_numpy(draws).to(self.layout.device, self.layout.dtype)
        return self._starts[matrix.layer]

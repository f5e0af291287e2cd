"""The sum of matrices of low rank; see `hpclbfl.comm.compression.powersgd`.

Two rings per bucket: the products P = M Q, with the parameters that are sent whole behind them, start with the
backward pass; Q = M^T P follows once P is summed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm.base import Handle
from hpclbfl.comm.compression import Key, Layer, Piece, Setup
from hpclbfl.comm.compression.broken import drop
from hpclbfl.comm.compression.draws import ALL, generator
from hpclbfl.comm.compression.linear import LinearReduction
from hpclbfl.comm.wire import ring
from hpclbfl.gradients.norm import squared_norm

_FEW = 4


class Matrix:
    """A layer that is sent as two thin matrices.

    Args:
        rank: at most.
        seed: of the first Q.
        like: tells type and device.
    """

    def __init__(self, layer: Layer, rank: int, seed: int, like: Tensor) -> None:
        self.layer = layer
        self.rows, self.cols = layer.shape[0], layer.size // layer.shape[0]
        self.most = min(rank, self.rows, self.cols)
        drawn = generator(Key(seed, 0, ALL, layer.number)).standard_normal((self.most, self.cols))
        self._start = torch.from_numpy(drawn).to(like.device, like.dtype)
        self.right = self._start.clone()
        """Q^T [rank, cols] of the last step, with which the next one starts."""
        self.left = like.new_empty(0)
        """P^T [rank, rows] of this step, orthonormal once it is summed."""

    def of(self, flat: Tensor) -> Tensor:
        """[rows, cols] its part of a flat tensor."""
        return self.layer.of(flat).view(self.rows, self.cols)

    def start(self, rank: int) -> Tensor:
        """Q^T for a step. A row of zeros would stay one for good: the first step's takes its place."""
        right = self.right[:rank]
        return torch.where((right != 0).any(1, keepdim=True), right, self._start[:rank])

    def keep(self, right: Tensor) -> None:
        """Start the next step with it, unless a gradient was not finite."""
        rank = len(right)
        self.right[:rank] = torch.where(right.isfinite().all(), right, self.right[:rank])


class LowRank(LinearReduction):
    """A `hpclbfl.comm.compression.Reduction`.

    Args:
        rank: of the approximation, at most.
        feedback, setup: see `LinearReduction`.
    """

    def __init__(self, rank: int, feedback: bool, setup: Setup) -> None:
        super().__init__(feedback, setup)
        self._matrices = {
            layer.number: Matrix(layer, rank, setup.seed, setup.flat)
            for layer in setup.layers
            if num_sent(layer, rank) < layer.size
        }
        self._first: dict[int, tuple[Tensor, Handle]] = {}

    @property
    def matrices(self) -> list[Matrix]:
        """Layers that are sent as two thin matrices."""
        return list(self._matrices.values())

    def start(self, piece: Piece) -> None:
        """P of every matrix, and the rest whole."""
        parts = []
        for layer in piece.layers:
            matrix = self._matrices.get(layer.number)
            own = layer.of(self._sum)
            parts.append(
                own if matrix is None else (matrix.start(self._rank(matrix)) @ matrix.of(self._sum).T).view(-1)
            )
        self._first[piece.number] = self._reduce(torch.cat(parts), f"compressed.left.{piece.number}")

    def finish(self) -> None:
        """P Q^T, and the rank's own part of it taken from the rank's sum."""
        second = {piece.number: self._take_left(piece) for piece in self._setup.pieces}
        for piece in self._setup.pieces:
            self._take_right(piece, *second[piece.number])
        if not self._setup.is_alike:
            # Unlike machines round products differently, and their models would part.
            self._setup.comm.broadcast_([self._setup.flat])
        # Where one rank's gradient was not finite, no rank's is any more.
        drop(self._sum, squared_norm([self._sum]))

    def _take_left(self, piece: Piece) -> tuple[Tensor, Handle | None]:
        flat, handle = self._first.pop(piece.number)
        handle.wait()
        begin, parts = 0, []
        for layer in piece.layers:
            matrix = self._matrices.get(layer.number)
            if matrix is None:
                layer.of(self._setup.flat).copy_(flat[begin : begin + layer.size])
                layer.of(self._sum).zero_()
                begin += layer.size
                continue
            size = matrix.rows * self._rank(matrix)
            matrix.left = self._orthonormal(flat[begin : begin + size].view(-1, matrix.rows))
            begin += size
            right = matrix.left @ matrix.of(self._sum)
            # The rank's own part leaves its sum; of this the ranks' parts are the whole.
            add_product_(matrix.of(self._sum), matrix.left, right, -1.0)
            parts.append(right.view(-1))
        if not parts:
            return flat, None
        return self._reduce(torch.cat(parts), f"compressed.right.{piece.number}")

    def _take_right(self, piece: Piece, flat: Tensor, handle: Handle | None) -> None:
        if handle is not None:
            handle.wait()
        begin = 0
        for layer in piece.layers:
            matrix = self._matrices.get(layer.number)
            if matrix is None:
                continue
            size = matrix.cols * self._rank(matrix)
            right = flat[begin : begin + size].view(-1, matrix.cols)
            begin += size
            add_product_(matrix.of(self._setup.flat).zero_(), matrix.left, right)
            matrix.keep(right)

    def _orthonormal(self, left: Tensor) -> Tensor:
        # A gradient that is not finite has no basis, and must be seen by all ranks.
        if not left.is_cuda and not math.isfinite(left.sum().item()):
            return torch.full_like(left, math.nan)
        basis: Tensor = torch.linalg.qr(left.T).Q.T.contiguous()
        if not self._setup.is_alike:
            self._setup.comm.broadcast_([basis])
        return basis

    def _rank(self, matrix: Matrix) -> int:
        return min(int(self._level), matrix.most)

    def _reduce(self, flat: Tensor, name: str) -> tuple[Tensor, Handle]:
        self.sent_bytes += ring(flat.nbytes, self._setup.comm.size)
        return flat, self._setup.comm.reduce_(flat, name)

    def shared_state(self) -> dict[str, Any]:
        """Q of every matrix."""
        return {"right": [matrix.right for matrix in self._matrices.values()]}

    def load_shared_state(self, found: dict[str, Any]) -> None:
        """See `Reduction`."""
        for matrix, saved in zip(self._matrices.values(), found["right"], strict=True):
            matrix.right.copy_(saved)


def add_product_(out: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> None:
    """Add alpha times the product of [rank, rows]^T and [rank, cols] to `out`."""
    if out.is_cuda or len(left) > _FEW:
        out.addmm_(left.T, right, alpha=alpha)
        return
    # A host's matrix product takes three times as long as so few outer products.
    for row, col in zip(left, right, strict=True):
        out.addr_(row, col, alpha=alpha)


def num_sent(layer: Layer, rank: int) -> int:
    """Values of a layer that are sent: of two thin matrices, or all where these would be no fewer."""
    if len(layer.shape) < 2 or not layer.size:
        return layer.size
    rows, cols = layer.shape[0], layer.size // layer.shape[0]
    return min(layer.size, (rows + cols) * min(rank, rows, cols))

"""Compressors of what clients send: of their gradients in every step, or of what local training has changed.

A reduction collects the clients' contributions, x_c, and ends with an approximation of their sum on every rank. With
error feedback (S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
2019) a client sends C(p_c) with p_c = x_c + e_c and keeps e_c = p_c - C(p_c) for the next time, so that the sum of all
that was sent differs from the sum of all contributions by the newest e_c alone.

Clients are not ranks: a compressor that is not linear acts on each client's contribution, with random numbers that are
keyed by (seed, step, client), also in a lone process. A linear one may act on a rank's sum, and keep its residual.

Layers are compressed one by one, so that the result does not depend on the size of the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from hpclbfl.comm.base import Communicator


class Layer(NamedTuple):
    """A parameter's place in a flat tensor."""

    number: int
    shape: tuple[int, ...]
    begin: int
    size: int

    def of(self, flat: Tensor) -> Tensor:
        """[size] its part."""
        return flat[self.begin : self.begin + self.size]


class Piece(NamedTuple):
    """Consecutive layers that travel together: a bucket."""

    number: int
    layers: tuple[Layer, ...]

    @property
    def begin(self) -> int:
        """In the flat tensor."""
        return self.layers[0].begin

    @property
    def size(self) -> int:
        """Elements."""
        return sum(layer.size for layer in self.layers)

    def of(self, flat: Tensor) -> Tensor:
        """[size] its part."""
        return flat[self.begin : self.begin + self.size]


class Key(NamedTuple):
    """What random numbers are keyed by."""

    seed: int
    step: int
    client: int
    layer: int


@dataclass(frozen=True)
class Setup:
    """What a reduction works on."""

    comm: Communicator
    flat: Tensor
    """[P] takes the sum."""
    pieces: Sequence[Piece]
    """Of `flat`, in the order in which they are reduced."""
    clients: Sequence[range]
    """Of every rank."""
    seed: int
    is_alike: bool = True
    """Whether all ranks round alike."""

    @property
    def own(self) -> range:
        """Clients of this rank."""
        return self.clients[self.comm.rank]

    @property
    def num_clients(self) -> int:
        """Of all ranks."""
        return sum(len(ids) for ids in self.clients)

    @property
    def layers(self) -> list[Layer]:
        """Of all pieces."""
        return [layer for piece in self.pieces for layer in piece.layers]


class Target(NamedTuple):
    """Where a client's contribution is to be written."""

    flat: Tensor
    """[P]"""
    adds: bool
    """Whether it is added to what is there; else it replaces that, the first time in a step."""


class Codec(Protocol):
    """Compresses one layer of one client; what a compressor of the user's own is.

    A payload's size follows from the layer's size alone, so that every rank knows what the others send.
    """

    def size(self, num_values: int, itemsize: int) -> int:
        """Bytes of a payload."""

    def encode(self, values: Tensor, key: Key) -> Tensor:
        """[n] values to a payload, uint8."""

    def decode_(self, payload: Tensor, out: Tensor, key: Key, alpha: float = 1.0) -> None:
        """Add alpha times what a payload stands for to `out`, [n]."""


class Reduction(Protocol):
    """Sums what all clients contribute, compressed. All ranks make the same calls in the same order.

    A step is `begin`, then for each client of this rank its contribution written to `target` and `add` for each piece,
    then `start` for each piece, and `finish`.
    """

    sent_bytes: float
    """By this rank in the last step."""

    def begin(self, step: int, level: float) -> None:
        """Forget the last step; `level`: how much is sent from now on, a ratio or a rank."""

    def target(self, client: int) -> Target:
        """Where a client of this rank writes its contribution."""

    def add(self, client: int, piece: Piece) -> None:
        """A client's contribution to a piece is whole."""

    def start(self, piece: Piece) -> None:
        """All clients of this rank have added theirs."""

    def finish(self) -> Tensor | None:
        """Fill the setup's `flat` with the sum.

        Returns:
            [2] sums over all clients of |p_c|^2 and |p_c - C(p_c)|^2, float64; None where clients have none.
        """

    def residual(self, client: int) -> Tensor | None:
        """[P] what a client keeps for the next time; None: nothing, or another client of the rank has it."""

    def add_residual(self, client: int, saved: Tensor) -> None:
        """Go on from it."""

    def shared_state(self) -> dict[str, Any]:
        """What it remembers that is equal on all ranks."""

    def load_shared_state(self, found: dict[str, Any]) -> None:
        """Go on from it; types and shapes have been checked."""


def align(num_bytes: int) -> int:
    """The next multiple of eight, at which any number may begin."""
    return -(-num_bytes // 8) * 8


def kept(num_values: int, ratio: float) -> int:
    """How many values of a layer are sent: at least one."""
    return min(num_values, max(1, round(ratio * num_values)))

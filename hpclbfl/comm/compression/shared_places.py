"""The sum of values at places that all clients draw alike: a ring allreduce of the values alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm.base import Handle
from hpclbfl.comm.compression import Key, Layer, Piece, Setup, kept
from hpclbfl.comm.compression.broken import drop, spread
from hpclbfl.comm.compression.draws import ALL, places
from hpclbfl.comm.compression.linear import LinearReduction
from hpclbfl.comm.wire import ring
from hpclbfl.gradients.norm import squared_norm


class SharedPlaces(LinearReduction):
    """A `hpclbfl.comm.compression.Reduction`; see `hpclbfl.comm.compression.randomk`."""

    def __init__(self, feedback: bool, setup: Setup) -> None:
        super().__init__(feedback, setup)
        self._sent: dict[int, tuple[Tensor, Handle]] = {}
        self._places: dict[int, list[Tensor]] = {}

    def start(self, piece: Piece) -> None:
        """Send the rank's values."""
        own = piece.of(self._sum)
        spread(own, squared_norm([own]))
        chosen = [self._draw(layer) for layer in piece.layers]
        values = torch.cat([layer.of(self._sum)[at] for layer, at in zip(piece.layers, chosen, strict=True)])
        handle = self._setup.comm.reduce_(values, f"compressed.{piece.number}")
        self._sent[piece.number], self._places[piece.number] = (values, handle), chosen
        self.sent_bytes += ring(values.nbytes, self._setup.comm.size)

    def finish(self) -> None:
        """Put the sums at their places, and take what was sent from the rank's own."""
        flat = self._setup.flat.zero_()
        for piece in self._setup.pieces:
            values, handle = self._sent.pop(piece.number)
            handle.wait()
            chosen = self._places.pop(piece.number)
            for layer, at, sums in zip(piece.layers, chosen, values.split([len(c) for c in chosen]), strict=True):
                layer.of(flat)[at] = sums if self._feedback else sums * (layer.size / len(at))
                if self._feedback:
                    layer.of(self._sum)[at] = 0.0
            # All ranks begin anew where one of them had a gradient that was not finite, as one rank would.
            drop(piece.of(self._sum), squared_norm([values]))

    def _draw(self, layer: Layer) -> Tensor:
        key = Key(self._setup.seed, self._step, ALL, layer.number)
        return places(layer.size, kept(layer.size, self._level), key, self._sum.device)

    def shared_state(self) -> dict[str, Any]:
        """None: the places are keyed."""
        return {}

    def load_shared_state(self, found: dict[str, Any]) -> None:
        """Nothing."""

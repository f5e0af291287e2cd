"""The sum of payloads: each client's layers are compressed on their own, and every rank decodes all of them.

Payloads are gathered where that sends less than a ring allreduce of the decoded sum, which the sizes tell; ratios above
about 1 / n do not. Gathered ones are added client by client, so that the sum has the same bits on any number of ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm.base import Handle, Receiving
from hpclbfl.comm.compression import Codec, Key, Piece, Setup, Target, align
from hpclbfl.comm.compression.broken import drop, spread
from hpclbfl.comm.wire import ring
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import shown
from hpclbfl.gradients.norm import squared_norm


class PayloadReduction:
    """A `hpclbfl.comm.compression.Reduction`.

    Args:
        codec: of a layer; with a method `at(level)` where how much it sends can change.
        feedback: whether clients keep what they did not send.
        setup: what it works on.
    """

    def __init__(self, codec: Codec, feedback: bool, setup: Setup) -> None:
        self._base, self._codec, self._setup, self._feedback = codec, codec, setup, feedback
        flat = setup.flat
        # p_c = x_c + e_c comes to lie where e_c does, so that feedback takes P numbers per client and no more.
        self._residuals = {client: torch.zeros_like(flat) for client in setup.own} if feedback else {}
        self._scratch = flat.new_empty(0 if feedback else flat.shape)
        self._norms = torch.zeros(2, dtype=torch.float64, device=flat.device)
        self._step, self.sent_bytes, self._level = 0, 0.0, math.nan
        self._sizes: dict[int, int] = {}
        """Bytes of one client's payloads at this level, by piece."""
        self._payloads: dict[int, list[Tensor]] = {}
        self._handles: dict[int, Handle | Receiving] = {}

    def begin(self, step: int, level: float) -> None:
        """See `Reduction`."""
        self._step, self.sent_bytes = step, 0.0
        at = getattr(self._base, "at", None)
        if at is not None and level != self._level:
            self._codec, self._level = at(level), level
            self._sizes.clear()
        self._norms.zero_()
        self._setup.flat.zero_()
        self._payloads.clear()
        self._handles.clear()

    def target(self, client: int) -> Target:
        """See `Reduction`."""
        return Target(self._residuals[client] if self._feedback else self._scratch, self._feedback)

    def add(self, client: int, piece: Piece) -> None:
        """Encode, and keep what the payload does not stand for."""
        flat, gathers = self.target(client).flat, self._gathers(piece)
        found = self._payloads.setdefault(piece.number, [])
        for layer in piece.layers:
            key, values = Key(self._setup.seed, self._step, client, layer.number), layer.of(flat)
            before = squared_norm([values])
            spread(values, before)
            payload = self._encoded(values, key)
            self._codec.decode_(payload, values, key, -1.0)
            after = squared_norm([values])
            self._norms += torch.stack([before, after])
            if gathers:
                found.append(_padded(payload))
            else:
                self._codec.decode_(payload, layer.of(self._setup.flat), key)
            drop(values, after)

    def _encoded(self, values: Tensor, key: Key) -> Tensor:
        payload, size = self._codec.encode(values, key), self._codec.size(values.numel(), values.element_size())
        if not isinstance(payload, Tensor) or payload.dtype != torch.uint8 or payload.shape != (size,):
            given = f"{payload.dtype} {list(payload.shape)}" if isinstance(payload, Tensor) else shown(payload)
            raise ConfigError(
                f"compression.kind: {type(self._codec).__name__}.encode gives {given} for {values.numel()} values, not "
                f"the {size} bytes (torch.uint8) that size tells"
            )
        return payload

    def start(self, piece: Piece) -> None:
        """Send this rank's payloads, or their sum."""
        comm, name = self._setup.comm, f"compressed.{piece.number}"
        if comm.size == 1:
            return
        if self._gathers(piece):
            sent = torch.cat(self._payloads[piece.number])
            sizes = [len(ids) * self._bytes(piece) for ids in self._setup.clients]
            self._handles[piece.number] = comm.gather(sent, sizes, name)
            self.sent_bytes += (comm.size - 1) * sent.numel()
        else:
            part = piece.of(self._setup.flat)
            self._handles[piece.number] = comm.reduce_(part, name)
            self.sent_bytes += ring(part.nbytes, comm.size)

    def finish(self) -> Tensor | None:
        """Wait, and decode what was gathered, client by client."""
        for piece in self._setup.pieces:
            if (handle := self._handles.get(piece.number)) is not None and (arrived := handle.wait()) is not None:
                self._decode(piece, arrived)
        if self._setup.comm.size > 1:
            self._setup.comm.reduce_(self._norms, "compressed.norms").wait()
        return self._norms

    def _decode(self, piece: Piece, arrived: Tensor) -> None:
        place, flat = 0, self._setup.flat
        for client in (client for ids in self._setup.clients for client in ids):
            for layer in piece.layers:
                size = self._codec.size(layer.size, flat.element_size())
                key = Key(self._setup.seed, self._step, client, layer.number)
                self._codec.decode_(arrived[place : place + size], layer.of(flat), key)
                place += align(size)

    def _gathers(self, piece: Piece) -> bool:
        """Whether payloads travel; decided from sizes that all ranks know."""
        num_ranks, dense = self._setup.comm.size, piece.size * self._setup.flat.element_size()
        most = max(len(ids) for ids in self._setup.clients)
        return num_ranks > 1 and (num_ranks - 1) * most * self._bytes(piece) < ring(dense, num_ranks)

    def _bytes(self, piece: Piece) -> int:
        """Of one client's payloads."""
        if piece.number not in self._sizes:
            itemsize = self._setup.flat.element_size()
            self._sizes[piece.number] = sum(align(self._codec.size(layer.size, itemsize)) for layer in piece.layers)
        return self._sizes[piece.number]

    def residual(self, client: int) -> Tensor | None:
        """See `Reduction`."""
        return self._residuals.get(client)

    def add_residual(self, client: int, saved: Tensor) -> None:
        """See `Reduction`."""
        self._residuals[client].copy_(saved)

    def shared_state(self) -> dict[str, Any]:
        """None: random numbers are keyed."""
        return {}

    def load_shared_state(self, found: dict[str, Any]) -> None:
        """Nothing."""


def _padded(payload: Tensor) -> Tensor:
    missing = align(payload.numel()) - payload.numel()
    return torch.cat([payload, payload.new_zeros(missing)]) if missing else payload

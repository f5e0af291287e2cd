"""The sum of whole multiples of a shared step; see `hpclbfl.comm.compression.qsgd`.

The scale is known once all clients' gradients are there: nothing is sent during the backward pass, and each client of a
rank needs room for its own, P numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpclbfl.comm.compression import Key, Layer, Piece, Setup, Target
from hpclbfl.comm.compression.draws import dither
from hpclbfl.comm.compression.forgetful import Forgetful
from hpclbfl.comm.wire import Summing, ring, shares
from hpclbfl.gradients.norm import squared_norm

_BYTE = 8


class Quantised(Forgetful):
    """A `hpclbfl.comm.compression.Reduction`.

    Args:
        bits: of a value: 2, 4 or 8.
        setup: what it works on.
    """

    def __init__(self, bits: int, setup: Setup) -> None:
        self._bits, self._setup = bits, setup
        self._levels = levels(bits)
        self._own = {client: torch.zeros_like(setup.flat) for client in setup.own}
        self._step, self.sent_bytes = 0, 0.0
        most = max(len(ids) for ids in setup.clients)
        self._packs = most == 1
        self._sent = holding(self._levels * most)
        self._summed = holding(self._levels * setup.num_clients)

    def begin(self, step: int, level: float) -> None:
        """See `Reduction`."""
        self._step, self.sent_bytes = step, 0.0

    def target(self, client: int) -> Target:
        """See `Reduction`."""
        return Target(self._own[client], adds=False)

    def add(self, client: int, piece: Piece) -> None:
        """It waits for the scale."""

    def start(self, piece: Piece) -> None:
        """The same."""

    def finish(self) -> Tensor | None:
        """Agree on the scales, round, and sum."""
        comm, flat, layers = self._setup.comm, self._setup.flat, self._setup.layers
        by_rank = torch.zeros(comm.size, len(layers), dtype=torch.float64, device=flat.device)
        rows = [torch.stack([layer.of(own).abs().amax() for layer in layers]) for own in self._own.values()]
        by_rank[comm.rank] = torch.stack(rows).amax(0)
        if comm.size > 1:
            comm.reduce_(by_rank.view(-1), "compressed.scales").wait()
        scales = by_rank.amax(0).to(flat.dtype)
        norms = torch.zeros(2, dtype=torch.float64, device=flat.device)
        sums = [self._summing(piece, scales, norms) for piece in self._setup.pieces]
        for summing in sums:
            if isinstance(summing, Summing):
                summing.exchanged()
        for piece, summing in zip(self._setup.pieces, sums, strict=True):
            total = summing.wait() if isinstance(summing, Summing) else summing
            piece.of(flat).copy_(total)
            for layer in piece.layers:
                layer.of(flat).mul_(scales[layer.number] / self._levels)
            self.sent_bytes += summing.sent_bytes if isinstance(summing, Summing) else 0.0
        if comm.size > 1:
            self.sent_bytes += ring(by_rank.nbytes, comm.size)
            comm.reduce_(norms, "compressed.norms").wait()
        return norms

    def _summing(self, piece: Piece, scales: Tensor, norms: Tensor) -> Summing | Tensor:
        comm = self._setup.comm
        total = torch.zeros(piece.size, dtype=self._sent, device=scales.device)
        for client, own in self._own.items():
            norms[0] += squared_norm([piece.of(own)])
            for layer in piece.layers:
                at = layer.begin - piece.begin
                part = total[at : at + layer.size]
                part += self._round(layer.of(own), scales[layer.number], client, layer)
            norms[1] += squared_norm([piece.of(own)])
        if comm.size == 1:
            return total
        sizes = shares(piece.size, comm.size)
        rows = list(total.split(sizes))
        if not self._packs:
            return Summing(comm, rows, self._sum, sizes, f"compressed.{piece.number}")
        packed = [pack(row, self._bits) for row in rows]

        def total_of(arrived: list[Tensor]) -> Tensor:
            return self._sum([unpack(row, self._bits, sizes[comm.rank]) for row in arrived])

        return Summing(comm, packed, total_of, sizes, f"compressed.{piece.number}")

    def _round(self, values: Tensor, scale: Tensor, client: int, layer: Layer) -> Tensor:
        """[n] whole numbers; the rounding error takes the values' place."""
        factor = torch.where(scale > 0, self._levels / scale, 0.0)
        drawn = dither(layer.size, Key(self._setup.seed, self._step, client, layer.number), values.device)
        rounded = (values * factor + drawn).floor_().clamp_(-self._levels, self._levels)
        values.sub_(rounded * (scale / self._levels))
        return rounded.nan_to_num_().to(self._sent)

    def _sum(self, rows: list[Tensor]) -> Tensor:
        total = rows[0].to(self._summed)
        for row in rows[1:]:
            total += row
        return total


def levels(bits: int) -> int:
    """On either side of zero."""
    return int(2 ** (bits - 1)) - 1


def holding(largest: int) -> torch.dtype:
    """The smallest type that holds whole numbers of this magnitude."""
    return next(kind for kind in (torch.int8, torch.int16, torch.int32) if largest <= torch.iinfo(kind).max)


def pack(values: Tensor, bits: int) -> Tensor:
    """[n] whole numbers of so many bits to [ceil(8 n / bits)] bytes, int8."""
    if bits == _BYTE:
        return values
    count = _BYTE // bits
    missing = -values.numel() % count
    codes = (values + 2 ** (bits - 1)).to(torch.uint8)
    codes = torch.cat([codes, codes.new_zeros(missing)]).view((len(values) + missing) // count, count)
    packed = codes[:, 0].clone()
    for k in range(1, count):
        packed |= codes[:, k] << (bits * k)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The reverse of `pack`: [count] whole numbers, int8."""
    if bits == _BYTE:
        return packed
    mask, columns = 2**bits - 1, range(_BYTE // bits)
    codes = torch.stack([(packed >> (bits * k)) & mask for k in columns], 1).flatten()[:count]
    values: Tensor = codes.to(torch.int8) - 2 ** (bits - 1)
    return values

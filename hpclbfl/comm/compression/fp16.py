"""Half precision: each client's contribution is rounded to it, and so is the sum.

What meets in between is summed in double precision, where sums of halves are exact: any number of ranks gives the same.
With a client per rank halves travel, else the ranks' sums in their own type, and halves on the way back. A value beyond
65504 becomes infinite, and the step counts as not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.comm.compression import Layer, Piece, Reduction, Setup, Target
from hpclbfl.comm.compression.forgetful import Forgetful
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.compression import CompressionConfig
from hpclbfl.gradients.norm import squared_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from hpclbfl.comm.compression.volume import Volume
    from hpclbfl.comm.wire import Summing
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class Fp16Config(CompressionConfig):
    """Values travel in half precision."""


@COMPRESSORS.register("fp16", Fp16Config)
class Fp16:
    """Makes the reduction."""

    def __init__(self, config: Fp16Config) -> None:
        pass

    def reduction(self, setup: Setup) -> Reduction:
        """See `hpclbfl.comm.compression.build`."""
        return Halves(setup)

    def volume(self, layers: Sequence[Layer], itemsize: int, num_clients: int) -> Volume:
        """Half of four bytes, or a quarter of eight."""
        from hpclbfl.comm.compression.volume import Volume

        return Volume(2.0 * sum(layer.size for layer in layers))


class Halves(Forgetful):
    """A `hpclbfl.comm.compression.Reduction`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._own = torch.empty_like(setup.flat)
        self._norms = torch.zeros(2, dtype=torch.float64, device=setup.flat.device)
        self._wire = torch.float16 if max(len(ids) for ids in setup.clients) == 1 else setup.flat.dtype
        self._sums: dict[int, Summing] = {}
        self.sent_bytes = 0.0

    def begin(self, step: int, level: float) -> None:
        """See `Reduction`."""
        self.sent_bytes = 0.0
        self._setup.flat.zero_()
        self._norms.zero_()

    def target(self, client: int) -> Target:
        """One for all clients of the rank, each in turn."""
        return Target(self._own, adds=False)

    def add(self, client: int, piece: Piece) -> None:
        """Round, and add to the rank's sum."""
        own = piece.of(self._own)
        rounded = own.half().to(own.dtype)
        piece.of(self._setup.flat).add_(rounded)
        self._norms += torch.stack([squared_norm([own]), squared_norm([own.sub_(rounded)])])

    def start(self, piece: Piece) -> None:
        """Send the other ranks their shares of this rank's sum."""
        from hpclbfl.comm.wire import Summing, shares

        comm = self._setup.comm
        if comm.size == 1:
            return
        sizes = shares(piece.size, comm.size)
        rows = list(piece.of(self._setup.flat).to(self._wire).split(sizes))
        self._sums[piece.number] = Summing(comm, rows, _half_of_sum, sizes, f"compressed.{piece.number}")

    def finish(self) -> Tensor | None:
        """See `Reduction`."""
        comm, flat = self._setup.comm, self._setup.flat
        if comm.size == 1:
            flat.copy_(flat.half())
            return self._norms
        for piece in self._setup.pieces:
            self._sums[piece.number].exchanged()
        for piece in self._setup.pieces:
            summing = self._sums.pop(piece.number)
            piece.of(flat).copy_(summing.wait())
            self.sent_bytes += summing.sent_bytes
        comm.reduce_(self._norms, "compressed.norms").wait()
        return self._norms


def _half_of_sum(rows: list[Tensor]) -> Tensor:
    total = rows[0].double()
    for row in rows[1:]:
        total += row
    return total.half()

"""What a collective sends, in bytes per rank, and the exchange of pieces that are summed where they meet.

Of b bytes on each of n ranks a ring allreduce sends 2 (n - 1) / n b, an allgather (n - 1) b, and a reduce-scatter
(n - 1) / n b.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpclbfl.comm.base import Communicator, Receiving


def ring(num_bytes: float, num_ranks: int) -> float:
    """Bytes that a rank sends in a ring allreduce."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes


def as_bytes(values: Tensor) -> Tensor:
    """The same memory as uint8, 1-d."""
    return values.contiguous().view(-1).view(torch.uint8)


def shares(size: int, num_ranks: int) -> list[int]:
    """Elements of a piece that each rank sums."""
    quotient, rest = divmod(size, num_ranks)
    return [quotient + (rank < rest) for rank in range(num_ranks)]


class Summing:
    """Sums equal pieces of all ranks: each rank sums a share of it, and the ranks gather the sums.

    Args:
        comm: the engine.
        rows: a tensor per rank, what this rank has of that rank's share.
        total: sums received rows [n, k] and makes of them what the ranks gather, 1-d.
        sizes: elements of each rank's share.
        name: of the collectives.
    """

    def __init__(
        self,
        comm: Communicator,
        rows: list[Tensor],
        total: Callable[[list[Tensor]], Tensor],
        sizes: list[int],
        name: str,
    ) -> None:
        self._comm, self._total, self._sizes, self._name = comm, total, sizes, name
        self._dtype = rows[0].dtype
        flats = [as_bytes(row) for row in rows]
        own = flats[comm.rank].numel()
        self.sent_bytes = float(sum(flat.numel() for flat in flats) - own)
        self._exchange = comm.exchange(
            torch.cat(flats), [flat.numel() for flat in flats], [own] * comm.size, f"{name}.exchange"
        )
        self._own = own
        self._gather: Receiving | None = None

    def exchanged(self) -> None:
        """Wait for this rank's share, sum it, and begin to gather."""
        arrived = self._exchange.wait()
        # A piece may have fewer elements than there are ranks.
        parts = arrived.split(self._own) if self._own else [arrived] * self._comm.size
        rows = [part.view(self._dtype) for part in parts]
        summed = self._total(rows)
        self._summed = summed.dtype
        flat = as_bytes(summed)
        self.sent_bytes += (self._comm.size - 1) * flat.numel()
        sizes = [size * summed.element_size() for size in self._sizes]
        self._gather = self._comm.gather(flat, sizes, f"{self._name}.gather")

    def wait(self) -> Tensor:
        """The sums, 1-d."""
        if self._gather is None:
            raise RuntimeError("the sums are waited for before they were begun")
        return self._gather.wait().view(self._summed)

"""The interface that carries all messages between ranks, and how a process learns that MPI started it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    # The command line asks this module for its rank and must answer without loading torch.
    from torch import Tensor

FLAG_BITS = 8
"""How many flags, of one bit each, ranks can exchange at once."""


class Handle(Protocol):
    """A reduction under way."""

    def wait(self) -> None:
        """Return once the tensor holds the result; on a GPU: once the current stream is ordered behind it."""


class Receiving(Protocol):
    """An exchange of bytes under way."""

    def wait(self) -> Tensor:
        """What this rank receives, by sender."""


class Communicator(Protocol):
    """Collectives over all ranks. Every rank makes the same calls in the same order."""

    engine: str
    """horovod, mpi or local; stands in the provenance."""
    library: str
    """What carries the messages, with its version."""
    rank: int
    size: int
    local_rank: int
    local_size: int
    shares_gpus: bool
    """Whether two ranks may compute on one GPU."""

    def reduce_(self, flat: Tensor, name: str, on_chunk: Callable[[Tensor], None] | None = None) -> Handle:
        """Sum `flat` (1-d, contiguous) over ranks, in place; `on_chunk(view)` once a piece is reduced.

        `name` is equal on all ranks and unique among the reductions under way.
        """

    def gather(self, flat: Tensor, sizes: Sequence[int], name: str) -> Receiving:
        """Send `flat` (1-d bytes, uint8) to all ranks, and receive theirs behind each other.

        `sizes`: bytes of every rank, known to all; `name` as in `reduce_`.
        """

    def exchange(self, flat: Tensor, sent: Sequence[int], received: Sequence[int], name: str) -> Receiving:
        """Send each rank its part of `flat` (1-d bytes, uint8), and receive from each the part for this rank.

        `sent`, `received`: bytes to and from every rank; `name` as in `reduce_`.
        """

    def vote(self, bits: int) -> int:
        """Bitwise or of `bits` (FLAG_BITS wide) over ranks."""

    def allgather(self, row: Any) -> list[Any]:
        """Every rank's `row` (any picklable object), by rank."""

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Overwrite the tensors with those of `root`."""

    def barrier(self) -> None:
        """Return once every rank has called this."""

    def abort(self, code: int) -> None:
        """End every rank of the job at once with this exit code; does not return under MPI."""

    def close(self) -> None:
        """Leave the job in an orderly way; every rank must call this."""

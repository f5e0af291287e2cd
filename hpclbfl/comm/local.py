"""One process, no MPI: every collective is the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class _Done:
    def wait(self) -> None:
        pass


class _Own:
    def __init__(self, flat: Tensor) -> None:
        self._flat = flat

    def wait(self) -> Tensor:
        return self._flat


class LocalCommunicator:
    """The only rank; see `hpclbfl.comm.base.Communicator`."""

    engine = "local"
    library = "none"
    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    shares_gpus = True

    def reduce_(self, flat: Tensor, name: str, on_chunk: Callable[[Tensor], None] | None = None) -> _Done:
        """The sum over one rank is what is there."""
        if on_chunk is not None:
            on_chunk(flat)
        return _Done()

    def gather(self, flat: Tensor, sizes: Sequence[int], name: str) -> _Own:
        """What the only rank sends is what it receives."""
        return _Own(flat)

    def exchange(self, flat: Tensor, sent: Sequence[int], received: Sequence[int], name: str) -> _Own:
        """The same."""
        return _Own(flat)

    def vote(self, bits: int) -> int:
        """The only vote decides."""
        return bits

    def allgather(self, row: Any) -> list[Any]:
        """The only row."""
        return [row]

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Nothing to overwrite."""

    def barrier(self) -> None:
        """Nobody to wait for."""

    def abort(self, code: int) -> None:
        """Nobody else to end: the caller exits by itself."""

    def close(self) -> None:
        """Nothing to leave."""

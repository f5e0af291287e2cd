"""A communicator that reports its waiting to a watchdog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hpclbfl.comm.base import Communicator, Handle, Receiving
from hpclbfl.training.watchdog import Watchdog


class _WatchedHandle:
    def __init__(self, handle: Handle, comm: WatchedCommunicator) -> None:
        self._handle, self._comm = handle, comm

    def wait(self) -> None:
        with self._comm.waiting():
            self._handle.wait()


class _WatchedReceiving:
    def __init__(self, receiving: Receiving, comm: WatchedCommunicator) -> None:
        self._receiving, self._comm = receiving, comm

    def wait(self) -> Tensor:
        with self._comm.waiting():
            return self._receiving.wait()


class WatchedCommunicator:
    """Forwards all calls to another engine; see `hpclbfl.comm.base.Communicator`.

    Attributes:
        watchdog: told of every wait; None: nobody watches yet.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.watchdog: Watchdog | None = None
        self.engine, self.library = comm.engine, comm.library
        self.rank, self.size = comm.rank, comm.size
        self.local_rank, self.local_size = comm.local_rank, comm.local_size
        self.shares_gpus = comm.shares_gpus

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which this rank waits for others."""
        if self.watchdog is None:
            yield
        else:
            with self.watchdog.waiting():
                yield

    def reduce_(self, flat: Tensor, name: str, on_chunk: Callable[[Tensor], None] | None = None) -> Handle:
        """Both the start and the wait are watched."""
        with self.waiting():
            return _WatchedHandle(self._comm.reduce_(flat, name, on_chunk), self)

    def gather(self, flat: Tensor, sizes: Sequence[int], name: str) -> Receiving:
        """Both the start and the wait are watched."""
        with self.waiting():
            return _WatchedReceiving(self._comm.gather(flat, sizes, name), self)

    def exchange(self, flat: Tensor, sent: Sequence[int], received: Sequence[int], name: str) -> Receiving:
        """Both the start and the wait are watched."""
        with self.waiting():
            return _WatchedReceiving(self._comm.exchange(flat, sent, received, name), self)

    def vote(self, bits: int) -> int:
        """Watched."""
        with self.waiting():
            return self._comm.vote(bits)

    def allgather(self, row: Any) -> list[Any]:
        """Watched."""
        with self.waiting():
            return self._comm.allgather(row)

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Watched."""
        with self.waiting():
            self._comm.broadcast_(tensors, root)

    def barrier(self) -> None:
        """Watched."""
        with self.waiting():
            self._comm.barrier()

    def abort(self, code: int) -> None:
        """Not watched: it does not wait."""
        self._comm.abort(code)

    def close(self) -> None:
        """Not watched."""
        self._comm.close()

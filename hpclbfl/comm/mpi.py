"""mpi4py alone: sums in pieces that stay in a processor's cache, for nodes without GPUs.

One Allreduce of a large buffer goes through main memory several times, and Horovod's thread takes time from the ranks'
cores. Here the calling thread reduces piece after piece, after the backward pass, and hands each to its reader (a norm)
while it is in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm import mpi_runtime
from hpclbfl.comm.base import FLAG_BITS
from hpclbfl.core.errors import ConfigError, EnvironmentFault


class _Deferred:
    """A reduction that is carried out when it is waited for."""

    def __init__(self, comm: Any, in_place: Any, flat: Tensor, chunk: int, on_chunk: Callable[[Tensor], None] | None):
        self._comm, self._in_place, self._flat, self._chunk, self._on_chunk = comm, in_place, flat, chunk, on_chunk

    def wait(self) -> None:
        values = self._flat.numpy()
        for begin in range(0, len(values), self._chunk):
            self._comm.Allreduce(self._in_place, values[begin : begin + self._chunk])
            if self._on_chunk is not None:
                self._on_chunk(self._flat[begin : begin + self._chunk])


class _DeferredExchange:
    """Bytes that are exchanged when they are waited for."""

    def __init__(self, call: Callable[[Any, Any], None], flat: Tensor, sent: Any, received: Sequence[int]) -> None:
        self._call, self._flat, self._sent, self._received = call, flat, sent, received

    def wait(self) -> Tensor:
        arrived = torch.empty(sum(self._received), dtype=torch.uint8)
        values = self._flat.numpy()
        self._call(values if self._sent is None else [values, self._sent], [arrived.numpy(), self._received])
        return arrived


class MpiCommunicator:
    """All ranks of the MPI job; see `hpclbfl.comm.base.Communicator`.

    A reduction is carried out when it is waited for: waits must come in the same order on every rank.

    Args:
        chunk_mb: size of a piece, MB; equal on all ranks.

    Raises:
        EnvironmentFault: mpi4py is not installed or finds no MPI.
    """

    engine = "mpi"
    shares_gpus = True

    def __init__(self, chunk_mb: float) -> None:
        mpi_runtime.prepare()
        try:
            import mpi4py

            # Loader threads make no MPI calls.
            mpi4py.rc.thread_level = "funneled"
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise EnvironmentFault(
                f"comm.engine mpi: mpi4py cannot be loaded ({error}); run 'make install', then 'hpclbfl doctor'"
            ) from error
        self._mpi: Any = MPI
        self._comm: Any = MPI.COMM_WORLD
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = int(node.Get_rank()), int(node.Get_size())
        node.Free()
        self._chunk_bytes = int(chunk_mb * 1e6)
        self.library = f"mpi4py {mpi4py.__version__}, {MPI.Get_library_version().splitlines()[0].split(',')[0]}"

    def reduce_(self, flat: Tensor, name: str, on_chunk: Callable[[Tensor], None] | None = None) -> _Deferred:
        """A sum in pieces, when it is waited for.

        Raises:
            ConfigError: the tensor lies on a GPU, or MPI has no number of its type.
        """
        if flat.is_cuda:
            raise ConfigError("comm.engine: mpi moves host memory; on GPUs leave it 'auto' (Horovod)")
        if flat.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"comm.engine: mpi sums float32 and float64, not {flat.dtype}; leave it 'auto' (Horovod)")
        # Whole megabytes would cut the cache lines that torch's kernels like whole.
        chunk = max(1, self._chunk_bytes // flat.element_size() // 1024) * 1024
        return _Deferred(self._comm, self._mpi.IN_PLACE, flat, chunk, on_chunk)

    def gather(self, flat: Tensor, sizes: Sequence[int], name: str) -> _DeferredExchange:
        """When it is waited for."""
        return _DeferredExchange(self._comm.Allgatherv, flat, None, sizes)

    def exchange(self, flat: Tensor, sent: Sequence[int], received: Sequence[int], name: str) -> _DeferredExchange:
        """When it is waited for."""
        return _DeferredExchange(self._comm.Alltoallv, flat, sent, received)

    def vote(self, bits: int) -> int:
        """Bitwise or."""
        return int(self._comm.allreduce(bits & ((1 << FLAG_BITS) - 1), op=self._mpi.BOR))

    def allgather(self, row: Any) -> list[Any]:
        """Pickles the rows: for set-up and accounting, not for the inner loop."""
        return list(self._comm.allgather(row))

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """One after the other."""
        for tensor in tensors:
            values = tensor.detach().cpu().contiguous()
            self._comm.Bcast(values.numpy(), root)
            tensor.detach().copy_(values)

    def barrier(self) -> None:
        """MPI_Barrier."""
        self._comm.Barrier()

    def abort(self, code: int) -> None:
        """MPI_Abort."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(code)

    def close(self) -> None:
        """MPI_Finalize."""
        self._mpi.Finalize()

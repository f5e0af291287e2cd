"""Horovod over MPI (and NCCL on GPUs): the only module that imports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm import mpi_runtime
from hpclbfl.comm.base import FLAG_BITS
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.launched import launched_local_size

SETTINGS = {
    # Horovod alone only warns of a stall. Evaluation's or a download's minutes on one rank must fit below the limit.
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1800",
    # Which reductions meet in one cycle depends on timing, and with it the order of additions on three ranks and more.
    # Ours are as large as they should be.
    "HOROVOD_FUSION_THRESHOLD": "0",
}
"""Settings for ranks, however they were started; variables that the user has set stay."""
GPU_SETTINGS = {"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"}
"""Waiting for a reduction then orders the GPU's stream behind it instead of holding the host."""
CPU_SETTINGS = {"HOROVOD_CYCLE_TIME": "5"}
"""A longer cycle leaves the cores of a CPU node to the computation."""
SHARED_CORE_SETTINGS = {"OMPI_MCA_mpi_yield_when_idle": "1", "HOROVOD_CYCLE_TIME": "2"}
"""In every cycle Horovod's thread waits for the other ranks inside MPI; Open MPI spins there unless told to yield. The
thread has the lowest priority then (see `lower_priority`), so that a shorter cycle costs little."""
_LOWEST_PRIORITY = 19
PIECE_BYTES = 1 << 21
MOST_PIECES = 128
"""Of a tensor on the host. Each is a tensor of its own to Horovod, which remembers 1024 of them."""


class _Reduction:
    """Horovod's handles of a tensor's pieces; runs `on_chunk` on each when its result is there."""

    def __init__(
        self, hvd: Any, handles: Sequence[int], pieces: Sequence[Tensor], on_chunk: Callable[[Tensor], None] | None
    ) -> None:
        self._hvd, self._handles, self._pieces, self._on_chunk = hvd, handles, pieces, on_chunk

    def wait(self) -> None:
        for handle, piece in zip(self._handles, self._pieces, strict=True):
            self._hvd.synchronize(handle)
            _order_after(piece)
            if self._on_chunk is not None:
                self._on_chunk(piece)


class _Exchange:
    """Horovod's handle of bytes under way."""

    def __init__(self, hvd: Any, handle: int) -> None:
        self._hvd, self._handle = hvd, handle

    def wait(self) -> Tensor:
        arrived = self._hvd.synchronize(self._handle)
        # An exchange also tells how much came from whom.
        flat: Tensor = arrived[0] if isinstance(arrived, tuple) else arrived
        _order_after(flat)
        return flat


def pieces_of(flat: Tensor) -> tuple[Tensor, ...]:
    """A tensor on the host in pieces that stay in a processor's cache while they are summed; not too many of them."""
    size = max(PIECE_BYTES // flat.element_size(), -(-flat.numel() // MOST_PIECES))
    return flat.split(size) if flat.numel() > size else (flat,)


def _order_after(result: Tensor) -> None:
    """Let what comes next on the GPU wait for a result; Horovod has put that on the default stream, not on ours."""
    if result.is_cuda:
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())


def shares_cores(local_size: int, threads: int, cores: int) -> bool:
    """Whether Horovod's threads, one per rank, have no cores of their own.

    Args:
        local_size: ranks on this node.
        threads: that compute, per rank.
        cores: that this rank may use; where ranks are bound to some, of the node's only these.
    """
    return local_size * (threads + 1) > cores


def set_defaults(is_gpu: bool, is_crowded: bool) -> None:
    """Horovod's and MPI's settings for this process, before they are initialised; what the user has set stays.

    Args:
        is_gpu: whether the computation runs on a GPU.
        is_crowded: see `shares_cores`.
    """
    settings = {**SETTINGS, **(GPU_SETTINGS if is_gpu else CPU_SETTINGS)}
    if is_crowded and not is_gpu:
        settings |= SHARED_CORE_SETTINGS
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def threads() -> set[int]:
    """The threads of this process; empty where the system does not list them."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}  # noqa: PTH208, names alone
    except OSError:
        return set()


def lower_priority(started: Iterable[int]) -> None:
    """Let threads run where the computation leaves a core to them.

    Horovod's thread wakes up in every cycle, whether or not there is something to reduce. At equal priority it takes a
    core from the computation each time, and the other ranks' threads spin until it has been there.
    """
    for thread in started:
        # It has ended.
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, _LOWEST_PRIORITY)


class HorovodCommunicator:
    """All ranks of the MPI job; see `hpclbfl.comm.base.Communicator`.

    Raises:
        EnvironmentFault: Horovod is not installed, or was built without MPI.
    """

    engine = "horovod"

    def __init__(self) -> None:
        mpi_runtime.prepare()
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise EnvironmentFault(
                f"comm.engine horovod: Horovod cannot be loaded ({error}); run 'make install', then 'hpclbfl doctor'"
            ) from error
        local_size = launched_local_size(os.environ)
        is_crowded = shares_cores(local_size, torch.get_num_threads(), len(os.sched_getaffinity(0)))
        set_defaults(torch.cuda.is_available(), is_crowded)
        before = threads()
        hvd.init()
        if is_crowded and not torch.cuda.is_available():
            lower_priority(threads() - before)
        if not hvd.mpi_enabled():
            raise EnvironmentFault("comm.engine horovod: this Horovod runs without MPI; run 'hpclbfl doctor'")
        self._hvd = hvd
        self.rank, self.size = int(hvd.rank()), int(hvd.size())
        self.local_rank, self.local_size = int(hvd.local_rank()), int(hvd.local_size())
        self.shares_gpus = not hvd.nccl_built()
        from horovod import __version__ as horovod_version

        self.library = f"Horovod {horovod_version}, {_mpi().Get_library_version().splitlines()[0].split(',')[0]}"

    def reduce_(self, flat: Tensor, name: str, on_chunk: Callable[[Tensor], None] | None = None) -> _Reduction:
        """Start an in-place sum; Horovod's thread carries it out while this one goes on."""
        pieces = (flat,) if flat.is_cuda else pieces_of(flat)
        handles = [
            self._hvd.allreduce_async_(piece, name=f"{name}.{k}", op=self._hvd.Sum) for k, piece in enumerate(pieces)
        ]
        return _Reduction(self._hvd, handles, pieces, on_chunk)

    def gather(self, flat: Tensor, sizes: Sequence[int], name: str) -> _Exchange:
        """Start it; Horovod finds out the sizes by itself."""
        return _Exchange(self._hvd, self._hvd.allgather_async(flat, name=name))

    def exchange(self, flat: Tensor, sent: Sequence[int], received: Sequence[int], name: str) -> _Exchange:
        """Start it."""
        splits = torch.tensor(list(sent), dtype=torch.int32)
        return _Exchange(self._hvd, self._hvd.alltoall_async(flat, splits=splits, name=name))

    def vote(self, bits: int) -> int:
        """Bitwise or, as a sum of FLAG_BITS counters."""
        ballots = torch.tensor([float(bits >> k & 1) for k in range(FLAG_BITS)])
        counts = self._hvd.allreduce(ballots, name="vote", op=self._hvd.Sum).tolist()
        return sum(1 << k for k, count in enumerate(counts) if count > 0)

    def allgather(self, row: Any) -> list[Any]:
        """Pickles the rows: for set-up and accounting, not for the inner loop."""
        return list(self._hvd.allgather_object(row, name="rows"))

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """One broadcast after the other, under way together."""
        handles = [self._hvd.broadcast_async_(t, root, name=f"broadcast.{k}") for k, t in enumerate(tensors)]
        for handle, tensor in zip(handles, tensors, strict=True):
            self._hvd.synchronize(handle)
            _order_after(tensor)

    def barrier(self) -> None:
        """Through Horovod, so that it is ordered with the reductions."""
        self._hvd.barrier()

    def abort(self, code: int) -> None:
        """MPI_Abort: a rank that merely raised would leave the others hanging in Horovod's shutdown."""
        sys.stdout.flush()
        sys.stderr.flush()
        mpi = _mpi()
        if mpi.Is_finalized():
            # The first rank to leave ends MPI for all; then no rank is left to wait for.
            os._exit(code)
        mpi.COMM_WORLD.Abort(code)

    def close(self) -> None:
        """Collective shutdown."""
        self._hvd.shutdown()


def _mpi() -> Any:
    """Horovod's MPI through mpi4py, which neither starts nor ends it."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI

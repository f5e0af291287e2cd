"""A rank's part of `hpclbfl bench comm`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpclbfl.bench import peers
from hpclbfl.bench.comm import Settings
from hpclbfl.bench.ranks import Task, run, times_s
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.buffers import flat_zeros
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.errors import RunFailed
from hpclbfl.training import build

_WARMUP = 3
_REPEATED_MB = 400.0
"""A size is repeated until so much has been summed, within these bounds."""
_LEAST, _MOST = 6, 50

Reduce = Callable[[Tensor], object]


def measure(task: Task) -> dict[str, Any]:
    """Times of the sums, seconds, by size and repetition; the slowest rank's."""
    settings = Settings(**task.settings)
    comm: Communicator = build.communicator(CommConfig(engine="horovod" if "horovod" in task.variant else "mpi"))
    device = build.device(comm)
    reduce, library = _reducer(task, comm, device)
    times = []
    for mb in settings.mb:
        # Our engines work on our buffers; the others on what torch gives.
        make = flat_zeros if task.variant in ("mpi", "horovod") else _torch_zeros
        flat = make(max(1, int(mb * 1e6) // 4), torch.float32, device)
        count = int(min(_MOST, max(_LEAST, _REPEATED_MB / mb)))
        if task.variant == "memcpy":
            reduce = torch.empty_like(flat).copy_
        # Every sum begins with ones, so that no number of repetitions overflows, and the result is known.
        fill = partial(flat.fill_, 1.0)
        times.append(times_s(comm, device, partial(reduce, flat), _WARMUP, count, fill))
        expected = 1.0 if task.variant == "memcpy" else float(comm.size)
        if not bool((flat == expected).all()):
            raise RunFailed(f"the sum of {mb:g} MB over ranks is wrong")
    peers.leave(comm)
    return {"library": library, "times_s": times}


def _torch_zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=device)


def _reducer(task: Task, comm: Communicator, device: torch.device) -> tuple[Reduce, str]:
    """What sums a tensor over ranks in place, and what carries it."""
    if task.variant in ("mpi", "horovod"):
        return lambda flat: comm.reduce_(flat, "bench").wait(), comm.library
    if task.variant == "horovod-default":
        return peers.horovod_sum, comm.library
    if task.variant == "mpi4py":
        return peers.mpi_sum, comm.library
    if task.variant == "gloo":
        backend = peers.join(comm, task.folder, device)
        return torch.distributed.all_reduce, f"torch.distributed, {backend}"
    return lambda flat: None, "none"


if __name__ == "__main__":
    run(measure)

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
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.buffers import flat_empty
from hpclbfl.comm.engines import communicator
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.errors import RunFailed

_WARMUP = 3
_REPEATED_MB = 400.0
"""A size is repeated until so many MB have been summed, within these bounds."""
_LEAST, _MOST = 6, 50


def measure(task: Task) -> dict[str, Any]:
    """Times of the sums, seconds, by size and repetition; the slowest rank's."""
    settings = Settings(**task.settings)
    is_copy, is_ours = task.variant == "memcpy", task.variant in ("mpi", "horovod")
    if task.variant == "horovod-default":
        peers.start_horovod()
    comm: Communicator = communicator(CommConfig(engine="horovod" if "horovod" in task.variant else "mpi"))
    device = devices.choose(comm)
    reduce, library = _reducer(task, comm, device)
    times = []
    for mb in settings.mb:
        size = max(1, int(mb * 1e6) // 4)
        # Our engines use our buffers, the others torch's.
        flat = flat_empty(size, torch.float32, device) if is_ours else torch.zeros(size, device=device)
        if is_copy:
            reduce = torch.empty_like(flat).copy_
        count = int(min(_MOST, max(_LEAST, _REPEATED_MB / mb)))
        # Every sum starts from ones: repetitions do not overflow, and the result is known.
        times.append(times_s(comm, device, partial(reduce, flat), _WARMUP, count, partial(flat.fill_, 1.0)))
        if not bool((flat == (1.0 if is_copy else float(comm.size))).all()):
            raise RunFailed(f"the sum of {mb:g} MB over ranks is wrong")
    peers.leave(comm)
    return {"library": library, "times_s": times}


def _reducer(task: Task, comm: Communicator, device: torch.device) -> tuple[Callable[[Tensor], object], str]:
    """The function that sums a tensor over ranks in place, and the library behind it."""
    if task.variant in ("mpi", "horovod"):
        return lambda flat: comm.reduce_(flat, "bench").wait(), comm.library
    if task.variant == "gloo":
        backend = peers.join(comm, task.folder, device)
        return torch.distributed.all_reduce, f"torch.distributed, {backend}"
    if task.variant == "memcpy":
        return lambda flat: None, "none"
    return peers.horovod_sum if task.variant == "horovod-default" else peers.mpi_sum, comm.library


if __name__ == "__main__":
    run(measure)

"""Runs on every rank of a launch: reads the task, measures, writes the result or the error into the launch's folder."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpclbfl.comm.base import Communicator
from hpclbfl.core.launched import launched_rank
from hpclbfl.core.text import say_traceback
from hpclbfl.planner.network import slowest, synchronize

RESULT, ERROR = "result.json", "rank{}.error"
"""Files in a launch's folder: what rank 0 measured, why a rank failed."""


@dataclass(frozen=True)
class Task:
    """One launch."""

    variant: str
    settings: dict[str, Any]
    folder: str
    """The launch's own."""
    scratch: str
    """Shared by all launches of the benchmark."""
    begun: float
    """When it was started, s since the epoch."""

    def log(self, comm: Communicator, prefix: str = "rank") -> Path:
        """A log file for this rank."""
        return Path(self.folder) / f"{prefix}{comm.rank:05d}.h5"


def run(measure: Callable[[Task], dict[str, Any]]) -> None:
    """Carry out the task that the command line names; rank 0's answer (JSON values) is the result."""
    path = Path(sys.argv[1])
    rank = launched_rank(os.environ)
    try:
        found = measure(Task(**json.loads(path.read_text(encoding="utf-8"))))
        if rank == 0:
            (path.parent / RESULT).write_text(json.dumps(found), encoding="utf-8")
    except BaseException as error:
        say_traceback(error)
        line = (str(error).splitlines() or [""])[0]
        (path.parent / ERROR.format(rank)).write_text(f"{type(error).__name__}: {line}", encoding="utf-8")
        # mpirun ends the other ranks; a regular exit would wait for them.
        os._exit(1)


def times_s(
    comm: Communicator,
    device: torch.device,
    action: Callable[[], object],
    warmup: int,
    count: int,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Time an action that all ranks start together; the slowest rank's times, seconds [count].

    Args:
        warmup: calls that are not counted, before the others.
        before: is called before each, untimed.
    """
    own = []
    for _ in range(warmup + count):
        before()
        synchronize(device)
        comm.barrier()
        begin = time.perf_counter()
        action()
        synchronize(device)
        own.append(time.perf_counter() - begin)
    return slowest(comm, own[warmup:])

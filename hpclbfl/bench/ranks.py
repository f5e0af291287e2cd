"""What every rank of a launch does: read its task, measure, leave the result or the error in the launch's folder."""

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

from hpclbfl.bench.launches import ERROR, RESULT
from hpclbfl.comm.base import Communicator
from hpclbfl.core.launched import launched_rank
from hpclbfl.core.text import say_traceback


@dataclass(frozen=True)
class Task:
    """What a launch is to do."""

    variant: str
    settings: dict[str, Any]
    folder: str
    """The launch's own."""
    scratch: str
    """Shared by all launches of the benchmark."""


def run(measure: Callable[[Task], dict[str, Any]]) -> None:
    """Carry out the task that the command line names; rank 0's answer (JSON values) is the result."""
    path = Path(sys.argv[1])
    rank = launched_rank(os.environ)
    try:
        task = Task(**json.loads(path.read_text(encoding="utf-8")))
        found = measure(task)
        if rank == 0:
            (path.parent / RESULT).write_text(json.dumps(found), encoding="utf-8")
    except BaseException as error:
        say_traceback(error)
        line = (str(error).splitlines() or [""])[0]
        (path.parent / ERROR.format(rank)).write_text(f"{type(error).__name__}: {line}", encoding="utf-8")
        # mpirun ends the others; leaving in order would wait for them.
        os._exit(1)


def settle(device: torch.device) -> None:
    """Return once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_s(
    comm: Communicator,
    device: torch.device,
    action: Callable[[], object],
    warmup: int,
    count: int,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Time an action that all ranks begin together; the slowest rank's time counts, seconds [count].

    Args:
        warmup: calls before those that count.
        before: is called ahead of each, outside the time.
    """
    own = []
    for _ in range(warmup + count):
        before()
        settle(device)
        comm.barrier()
        begin = time.perf_counter()
        action()
        settle(device)
        own.append(time.perf_counter() - begin)
    return slowest(comm, own[warmup:])


def slowest(comm: Communicator, own: list[float]) -> list[float]:
    """The largest over ranks, element by element."""
    return [max(column) for column in zip(*comm.allgather(own), strict=True)]

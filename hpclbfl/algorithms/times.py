"""Waiting and transfer: every rank's times, known to all ranks.

The time that a rank spends in a reduction is its waiting for the slowest rank, and the transfer. The slowest one does
not wait, so the least time among the ranks is the transfer, and what others spend beyond it is waiting. Under BSP the
times of a step travel behind the gradients of a later one; after an averaging they are summed at once.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from hpclbfl.algorithms.record import StepRecord
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.side_channel import FloatArray
from hpclbfl.core.clock import Clock

GPU_LAG = 2
"""Steps after which a GPU has passed a step's time marks for certain, or nearly, and reading them holds up nobody."""


@dataclass(frozen=True)
class StepTimes:
    """All ranks' times of one step."""

    sizes: tuple[int, ...]
    """b_c of every client."""
    compute: FloatArray
    """[R] seconds of data, forward, backward and update."""


class TimeExchange:
    """Collects a rank's finished steps, and settles how much of their synchronisation was waiting.

    Args:
        comm: the engine.
        clock: of the rank's device.
    """

    def __init__(self, comm: Communicator, clock: Clock) -> None:
        self._comm = comm
        self._lag = GPU_LAG if clock.is_lazy else 1
        self._finished: deque[StepRecord] = deque()
        self._sent: deque[StepRecord | None] = deque()
        self._recent: deque[StepRecord] = deque(maxlen=64)

    def outgoing(self) -> tuple[float, float] | None:
        """Compute and synchronisation seconds of the step that is sent during this one."""
        record = self._finished.popleft() if len(self._finished) >= self._lag else None
        self._sent.append(record)
        return record.spent() if record is not None else None

    def incoming(self, times: FloatArray) -> StepTimes | None:
        """Take [R, 2] seconds that came back: those of the oldest step that was sent, if one was."""
        record = self._sent.popleft()
        if record is None:
            return None
        record.transfer = float(times[:, 1].min())
        return StepTimes(record.sizes, times[:, 0])

    def add(self, record: StepRecord) -> None:
        """A shared step is over."""
        if self._comm.size == 1:
            record.transfer = math.inf
        self._finished.append(record)

    def settle(self) -> None:
        """Exchange what has not been sent yet; a collective. For moments at which the log must be whole."""
        waiting = [r for r in (*self._sent, *self._finished) if r is not None and r.transfer is None]
        if waiting:
            rows = np.array(self._comm.allgather([record.spent()[1] for record in waiting]))
            for record, sync in zip(waiting, rows.T, strict=True):
                record.transfer = float(sync.min())

    def add_local(self, record: StepRecord) -> None:
        """A local step without an averaging is over: what it took to vote was waiting."""
        record.transfer = 0.0
        self._recent.append(record)

    def averaged(self, record: StepRecord, window: int) -> list[StepTimes]:
        """A step that ended with an averaging is over; the times of up to `window` steps since the last one."""
        recent = [*self._recent, record][-window:]
        self._recent.clear()
        rows = torch.zeros(self._comm.size, 1 + window, dtype=torch.float64)
        own = [record.spent()[1], *(r.spent()[0] for r in recent)]
        rows[self._comm.rank, : len(own)] = torch.tensor(own, dtype=torch.float64)
        self._comm.reduce_(rows.view(-1), "times").wait()
        gathered = rows.numpy()
        record.transfer = float(gathered[:, 0].min())
        return [StepTimes(r.sizes, gathered[:, 1 + k]) for k, r in enumerate(recent)]

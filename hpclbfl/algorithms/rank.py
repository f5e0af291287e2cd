"""A rank's place in a run: its engine, device and clock, its share of the data, and how far the run is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.algorithms.counters import Counters
from hpclbfl.algorithms.emulate import Emulation
from hpclbfl.algorithms.flags import NONFINITE
from hpclbfl.algorithms.record import StepRecord
from hpclbfl.algorithms.times import TimeExchange
from hpclbfl.batching import Plan
from hpclbfl.batching.local_steps import takes_part
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.side_channel import SideChannel
from hpclbfl.config.job import JobConfig
from hpclbfl.core.clock import Clock
from hpclbfl.data.loaders import BatchLoader
from hpclbfl.data.sampling import Sampler
from hpclbfl.losses.checked import Loss

_LOOK_EVERY = 50
"""Steps between two looks at a GPU for a gradient that was not finite."""


@dataclass(kw_only=True)
class Rank:
    """See the module."""

    job: JobConfig
    comm: Communicator
    side_channel: SideChannel
    device: torch.device
    clock: Clock
    train: BatchLoader
    loss: Loss
    sampler: Sampler
    plan: Plan
    """Batch sizes in force."""
    local_steps: NDArray[np.int64] | None
    """[C] steps of each client in a round, where these follow its speed."""
    autocast: Callable[[], AbstractContextManager[object]]
    agree: Callable[[Tensor], Tensor] | None
    """Makes a norm equal on ranks whose arithmetic rounds differently; None: it is."""
    times: TimeExchange
    emulation: Emulation | None
    """Makes this rank slower than it is."""
    counters: Counters
    _pending_flags: int = 0
    """Of this rank, until the next time at which flags are exchanged."""
    _is_broken: Tensor | None = None
    """On a GPU: whether some gradient since the last look was not finite."""

    @property
    def client_ids(self) -> range:
        """Numbers of the clients of this rank."""
        return clients_of_rank(len(self.sizes), self.comm.rank, self.comm.size)

    @property
    def clients_by_rank(self) -> list[range]:
        """Numbers of the clients of every rank."""
        return [clients_of_rank(len(self.sizes), rank, self.comm.size) for rank in range(self.comm.size)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """b_c of every client under the plan in force."""
        return self.plan.sizes

    @property
    def sizes_now(self) -> tuple[int, ...]:
        """b_c of every client in the coming step; 0 for one that sits it out."""
        most = self.job.sync.steps_of_fastest
        if self.local_steps is None or most is None:
            return self.sizes
        part = takes_part(self.counters.step % most, self.local_steps, most)
        return tuple(size if takes else 0 for size, takes in zip(self.sizes, part, strict=True))

    @property
    def counts_now(self) -> NDArray[np.int64]:
        """[C] samples of every client in the coming step."""
        return self.sampler.counts(self.sizes_now)

    def prefetch_after(self, client: int) -> None:
        """Begin to decode the batch that this rank needs after this client's, where samples are decoded on the fly."""
        if self.train.in_memory:
            return
        ids, positions = self.client_ids, self.counters.positions
        place = ids.index(client) + 1
        if place == len(ids):
            place, positions = 0, positions + self.counts_now
        samples, passes = self.sampler.take(ids[place], positions, self.sizes_now)
        if len(samples):
            self.train.prefetch(samples, passes)

    def exchange_flags(self, record: StepRecord, flags: int, now: bool) -> int:
        """The flags of all ranks where they are exchanged now; else 0, and what may not be lost waits."""
        self._pending_flags |= flags & NONFINITE
        if not now:
            return 0
        begin = self.clock.mark()
        flags = self.comm.vote(flags | self._pending_flags)
        self._pending_flags = 0
        record.sync.append((begin, self.clock.mark()))
        return flags

    def is_broken_by(self, sq_norm: Tensor | None) -> bool:
        """Whether the step must not be taken with a gradient of this squared norm.

        Loss scaling looks after its own overflows.
        """
        mode = self.job.on_nonfinite
        if mode == "ignore" or sq_norm is None or self.job.precision == "fp16":
            return False
        if not self._looks_late or mode == "skip":
            return not bool(torch.isfinite(sq_norm))
        # A run that is to end may end a little later.
        broken = ~torch.isfinite(sq_norm)
        self._is_broken = broken if self._is_broken is None else self._is_broken | broken
        return self.counters.step % _LOOK_EVERY == 0 and bool(self._is_broken)

    def nonfinite_text(self, whose: str) -> str:
        """An event's text."""
        return f"{whose} is not finite{'; the step is skipped' if self.job.on_nonfinite == 'skip' else ''}"

    @property
    def _looks_late(self) -> bool:
        """Whether looking at a number makes the host wait for the device."""
        return self.device.type == "cuda"


def clients_of_rank(num_clients: int, rank: int, size: int) -> range:
    """The contiguous block of clients that a rank holds; sizes differ by one at most.

    More ranks than clients would leave ranks without work; the caller refuses that.
    """
    quotient, rest = divmod(num_clients, size)
    begin = rank * quotient + min(rank, rest)
    return range(begin, begin + quotient + (rank < rest))

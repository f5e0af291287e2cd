"""What one optimizer step of a rank leaves behind: measured numbers, time marks and events, for the log."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from hpclbfl.comm.side_channel import FloatArray
from hpclbfl.core.clock import Mark, seconds


@dataclass
class ClientRecord:
    """What one client's part of a step left behind."""

    client: int
    num_samples: int
    data: tuple[Mark, Mark]
    compute: tuple[Mark, Mark]
    columns: dict[str, Tensor] = field(default_factory=dict)
    """What was measured, by the log's columns: 0-d tensors on the device; no loss for a client without samples."""


@dataclass
class StepRecord:
    """One step of one rank.

    Clients on a rank run in turn: what the rank spends once per step (update, synchronisation) is shared evenly among
    its clients' rows, so that the rows of a rank add up to its time, and each row obeys Eq. 2.
    """

    step: int
    round: int
    epoch: float
    num_samples: int
    lr: float
    columns: dict[str, Tensor] = field(default_factory=dict)
    """What was measured of the reduced gradient, by the log's columns: 0-d tensors on the device."""
    layer_sq_norms: Tensor | None = None
    """[L] of the reduced gradient, in steps that log them."""
    clients: list[ClientRecord] = field(default_factory=list)
    update: list[tuple[Mark, Mark]] = field(default_factory=list)
    sync: list[tuple[Mark, Mark]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    """(kind, text) of what this rank has to say about the step."""
    sizes: tuple[int, ...] = ()
    """b_c of every client of the job in this step."""
    gathered_times: FloatArray | None = None
    """[R, 2] the times that came back with the step's flags, of an earlier step; None: none did."""
    epoch_after: float = math.nan
    """Passes over the training set after this step."""
    transfer: float | None = None
    """Part of the synchronisation that was not waiting for slower ranks, s; None while that is not known, infinite
    where all of it is."""

    def spent(self) -> tuple[float, float]:
        """Seconds of this rank in data, passes and update, and in synchronisation; on a GPU waits for the marks."""
        passes = sum(seconds(*c.data) + seconds(*c.compute) for c in self.clients)
        return passes + sum(seconds(*s) for s in self.update), sum(seconds(*s) for s in self.sync)

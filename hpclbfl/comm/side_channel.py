"""What ranks tell each other in every step besides gradients: flags and times, in one small collective of their own.

It is begun with the step and waited for at its end, so that it travels while the ranks compute. It lies on the host,
also where gradients do not: nobody waits for a GPU to read a flag.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hpclbfl.comm.base import FLAG_BITS, Communicator, Handle

FloatArray = NDArray[np.float64]


class SideChannel:
    """Flags, or-ed over the ranks, and two numbers of every rank.

    Args:
        comm: the engine.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._row = torch.zeros(FLAG_BITS + 2 * comm.size, dtype=torch.float64)
        self._handle: Handle | None = None

    def begin(self, flags: int, times: tuple[float, float] | None) -> None:
        """Send this rank's flags and, if there are any, its times; a collective, as is `finish`."""
        row = self._row.numpy()
        row[:] = 0.0
        row[:FLAG_BITS] = [flags >> bit & 1 for bit in range(FLAG_BITS)]
        if times is not None:
            begin = FLAG_BITS + 2 * self._comm.rank
            row[begin : begin + 2] = times
        self._handle = self._comm.reduce_(self._row, "side")

    def finish(self) -> tuple[int, FloatArray]:
        """The flags that any rank has set, and [R, 2] the times, zeros of a rank that sent none."""
        if self._handle is None:
            raise RuntimeError("the side channel waits for what was not sent")
        self._handle.wait()
        self._handle = None
        gathered = self._row.numpy()
        flags = sum(1 << bit for bit, count in enumerate(gathered[:FLAG_BITS]) if count > 0)
        return flags, gathered[FLAG_BITS:].reshape(-1, 2).copy()

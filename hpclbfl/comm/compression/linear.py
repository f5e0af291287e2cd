"""What linear compressors share: they act on the rank's sum, and keep its residual.

Only the sum of all ranks' residuals matters to what follows, so that a checkpoint holds a rank's with its first client,
and a run goes on with any number of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpclbfl.comm.compression import Piece, Setup, Target


class LinearReduction:
    """Base of reductions of ranks' sums.

    Args:
        feedback: whether the rank keeps what it did not send.
        setup: what it works on.
    """

    def __init__(self, feedback: bool, setup: Setup) -> None:
        self._setup, self._feedback = setup, feedback
        # The rank's sum comes to lie where the residual does.
        self._sum = torch.zeros_like(setup.flat)
        self._step, self._level, self.sent_bytes = 0, 1.0, 0.0

    def begin(self, step: int, level: float) -> None:
        """See `Reduction`."""
        self._step, self._level, self.sent_bytes = step, level, 0.0
        if not self._feedback:
            self._sum.zero_()

    def target(self, client: int) -> Target:
        """The rank's sum."""
        return Target(self._sum, adds=True)

    def add(self, client: int, piece: Piece) -> None:
        """It is in the sum already."""

    def residual(self, client: int) -> Tensor | None:
        """The rank's, with its first client."""
        return self._sum if self._feedback and client == self._setup.own[0] else None

    def add_residual(self, client: int, saved: Tensor) -> None:
        """See `Reduction`."""
        self._sum.add_(saved)

"""Bulk-synchronous training: the gradient of every step is summed over all clients (paper, Eq. 1 with H = 1).

Each client back-propagates the sum of its samples' losses divided by the global batch B, so the summed gradient is the
mean over all B samples, however unequal the clients' batches are.
"""

from __future__ import annotations

from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import AlgorithmConfig


class BspConfig(AlgorithmConfig):
    """Gradients are summed over all clients in every step."""

    @property
    def title(self) -> str:
        """See `AlgorithmConfig`."""
        return "BSP"


class BulkSynchronous:
    """See `hpclbfl.algorithms.Synchroniser`."""

    def shared(self, step: int) -> bool:
        """Always."""
        return True

    def needs_vote(self, step: int) -> bool:
        """Never: votes ride on the gradients."""
        return False

    def averages(self, step: int, fired: bool) -> bool:
        """Never: there is one model."""
        return False

    def why_never(self, step: int, num_averagings: int) -> str:
        """Nobody trains alone."""
        return ""


@ALGORITHMS.register("bsp", BspConfig)
def make_bsp(config: BspConfig, global_batch_size: int, num_train: int) -> BulkSynchronous:
    """It has nothing to be set."""
    return BulkSynchronous()

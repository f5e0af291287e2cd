"""Bulk-synchronous training: the gradient of every step is summed over all clients (paper, Eq. 1 with H = 1).

Each client back-propagates the sum of its samples' losses divided by the global batch B, so the summed gradient is the
mean over all B samples, however unequal the clients' batches are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.algorithms.base import Algorithm
from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import AlgorithmConfig

if TYPE_CHECKING:
    from hpclbfl.algorithms.record import StepRecord
    from hpclbfl.algorithms.state import RankState


class BspConfig(AlgorithmConfig):
    """Gradients are summed over all clients in every step."""

    @property
    def title(self) -> str:
        """See `AlgorithmConfig`."""
        return "BSP"


class BulkSynchronous(Algorithm):
    """See the module."""

    def shares_model(self, step: int) -> bool:
        """Always."""
        return True

    def step(self, state: RankState, record: StepRecord, flags: int) -> int:
        """Buckets of the summed gradient are reduced during the last client's backward pass."""
        model = state.shared_model
        state.side_channel.begin(flags, state.times.outgoing())
        model.begin_step(state, record)
        for client in model.clients:
            model.backward(state, client, record)
        model.reduce(state, record)
        begin = state.clock.mark()
        flags, record.gathered_times = state.side_channel.finish()
        record.sync.append((begin, state.clock.mark()))
        return flags | model.update(state, record)

    def end_of_step(self, state: RankState, record: StepRecord, flags: int) -> bool:
        """Nothing: there is one model, and every step is a round."""
        return True


@ALGORITHMS.register("bsp", BspConfig)
def make_bsp(config: BspConfig, global_batch_size: int, num_train: int) -> BulkSynchronous:
    """It has nothing to be set."""
    return BulkSynchronous()

"""Post-local SGD: synchronous at first, local steps later.

T. Lin et al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020: the shared model is trained as under BSP until
`switch_step` (there, the first decay of the learning rate); from then on each client trains a copy of its own, momentum
included, and parameters are averaged every H steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hpclbfl.algorithms.base import VOTE_EVERY, LocalTraining
from hpclbfl.algorithms.bsp import BulkSynchronous
from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import LocalConfig
from hpclbfl.config.sections.base import PositiveInt

if TYPE_CHECKING:
    from hpclbfl.algorithms.record import StepRecord
    from hpclbfl.algorithms.state import RankState


class PostLocalConfig(LocalConfig):
    """Bulk-synchronous until a step, then federated averaging."""

    switch_step: PositiveInt
    """Steps with a shared model."""
    local_steps: PositiveInt
    """H, afterwards."""

    sums_gradients: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """See `AlgorithmConfig`."""
        return "post-local SGD"

    def period(self, global_batch_size: int, num_train: int) -> int:
        """H, after the switch."""
        return self.local_steps


@ALGORITHMS.register("post_local", PostLocalConfig)
class PostLocal(LocalTraining):
    """See the module.

    Args:
        config: of the job.
        global_batch_size, num_train: not used.
    """

    def __init__(self, config: PostLocalConfig, global_batch_size: int, num_train: int) -> None:
        self.switch_step, self.local_steps = config.switch_step, config.local_steps
        self._synchronous = BulkSynchronous()

    def shares_model(self, step: int) -> bool:
        """Up to the switch."""
        return step <= self.switch_step

    def exchanges_flags(self, step: int) -> bool:
        """Every min(H, 50) local steps."""
        return (step - self.switch_step) % min(self.local_steps, VOTE_EVERY) == 0

    def averages(self, step: int, flags: int) -> bool:
        """Every H local steps."""
        return (step - self.switch_step) % self.local_steps == 0

    def step(self, state: RankState, record: StepRecord, flags: int) -> int:
        """As under BSP; from the switch on, every client begins with a copy of model and momentum of its own."""
        if self.shares_model(state.counters.step + 1):
            return self._synchronous.step(state, record, flags)
        state.start_local_training()
        return super().step(state, record, flags)

    def end_of_step(self, state: RankState, record: StepRecord, flags: int) -> bool:
        """As under BSP, or an averaging where it is time."""
        return self.shares_model(state.counters.step) or super().end_of_step(state, record, flags)

    def why_never(self, step: int, num_averagings: int) -> str:
        """The first round after the switch has not ended."""
        if self.shares_model(step):
            return ""
        return f"a round has {self.local_steps} steps, the run {step - self.switch_step} after sync.switch_step"

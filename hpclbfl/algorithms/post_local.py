"""Post-local SGD: synchronous at first, local steps later.

T. Lin et al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020: the shared model is trained as under BSP until
`switch_step` (there, the first decay of the learning rate); from then on each client trains a copy of its own, momentum
included, and parameters are averaged every H steps.
"""

from __future__ import annotations

from typing import ClassVar

from hpclbfl.algorithms.fedavg import VOTE_EVERY
from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import LocalConfig
from hpclbfl.config.sections.base import PositiveInt


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


class PostLocal:
    """See `hpclbfl.algorithms.Synchroniser`.

    Args:
        switch_step: steps with a shared model.
        local_steps: H, local steps between two averagings.
    """

    def __init__(self, switch_step: int, local_steps: int) -> None:
        self.switch_step, self.local_steps = switch_step, local_steps

    def shared(self, step: int) -> bool:
        """Up to the switch."""
        return step <= self.switch_step

    def needs_vote(self, step: int) -> bool:
        """Every min(H, 50) local steps."""
        return not self.shared(step) and (step - self.switch_step) % min(self.local_steps, VOTE_EVERY) == 0

    def averages(self, step: int, fired: bool) -> bool:
        """Every H local steps."""
        return not self.shared(step) and (step - self.switch_step) % self.local_steps == 0

    def why_never(self, step: int, num_averagings: int) -> str:
        """The first round after the switch has not ended."""
        return (
            ""
            if self.shared(step)
            else (f"a round has {self.local_steps} steps, the run {step - self.switch_step} after sync.switch_step")
        )


@ALGORITHMS.register("post_local", PostLocalConfig)
def make_post_local(config: PostLocalConfig, global_batch_size: int, num_train: int) -> PostLocal:
    """See the module."""
    return PostLocal(config.switch_step, config.local_steps)

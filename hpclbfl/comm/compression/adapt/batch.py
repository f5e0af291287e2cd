"""The level by the batch: inversely proportional to B.

S. Tyagi, "On Using Large-Batches in Federated Learning", Eq. 9: a gradient is a sparse mean and a dense noise phi(b),
whose energy falls with the batch as 1 / b; so a batch twice as large is sent with half the ratio. For jobs whose batch
grows (`batching.policy: noise_scale` or `critical_phase`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpclbfl.comm.compression.adapt import Seen
from hpclbfl.config.components import ADAPTERS
from hpclbfl.config.sections.base import PositiveFloat, PositiveInt
from hpclbfl.config.sections.compression import AdaptConfig
from hpclbfl.core.state import checkpointed

if TYPE_CHECKING:
    from hpclbfl.gradients.gradient import Layout


class BatchConfig(AdaptConfig):
    """The level falls as the global batch grows (Eq. 9)."""

    to: PositiveFloat
    """Lowest level."""
    reference: PositiveInt
    """B, samples, up to which the compressor's own level holds."""

    @property
    def strongest(self) -> float:
        """See `AdaptConfig`."""
        return self.to


@checkpointed
@dataclass(frozen=True)
class BatchState:
    """The newest B, samples; 0: none yet."""

    batch_size: int


@ADAPTERS.register("batch", BatchConfig)
class Batch:
    """A `hpclbfl.comm.compression.adapt.Adapter`."""

    def __init__(self, config: BatchConfig) -> None:
        self._to, self._reference = config.to, config.reference

    def init(self, layout: Layout) -> BatchState:
        """See `Adapter`."""
        return BatchState(0)

    def level(self, weakest: float, state: BatchState) -> float:
        """See `Adapter`."""
        return max(self._to, weakest * min(1.0, self._reference / max(1, state.batch_size)))

    def update(self, seen: Seen, weakest: float, state: BatchState) -> BatchState:
        """See `Adapter`."""
        return BatchState(seen.context.batch_size)

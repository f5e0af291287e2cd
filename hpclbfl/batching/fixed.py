"""Fixed batch sizes: those of the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from hpclbfl.batching import Observation, Plan
from hpclbfl.config.components import POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import BatchingConfig


class FixedConfig(BatchingConfig):
    """Batches stay what the job says."""

    is_fixed: ClassVar[bool] = True


class Fixed:
    """See `hpclbfl.batching.BatchPolicy`."""

    needs_seconds = False
    warnings: tuple[str, ...] = ()

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, None]:
        """The job's sizes."""
        return Plan(sizes, "as the job says"), None

    def update(self, seen: Observation, state: None) -> tuple[None, None]:
        """Never a new plan."""
        return None, None


@POLICIES.register("fixed", FixedConfig)
def make_fixed(
    config: FixedConfig, job: JobConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> Fixed:
    """See the module."""
    return Fixed()

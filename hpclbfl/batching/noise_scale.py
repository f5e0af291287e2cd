"""A global batch that grows with the gradient noise scale.

S. McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162: a batch well below B_simple wastes
steps, one well above it wastes samples, and B_simple grows as the loss falls. B follows B_simple at the ends of epochs;
it only grows, and at least by the factor HYSTERESIS, so that steps in between stay comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpclbfl.batching import Observation, Plan
from hpclbfl.batching.share import even
from hpclbfl.config.components import POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.config.sections.batching import ResizedConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.state import checkpointed

HYSTERESIS = 1.5
"""Smallest factor by which B grows."""


class NoiseScaleConfig(ResizedConfig):
    """B grows with the gradient noise scale."""

    max_global_batch_size: PositiveInt
    """Bound of B."""

    @property
    def most(self) -> int:
        """See `BatchingConfig`."""
        return self.max_global_batch_size


@checkpointed
@dataclass(frozen=True)
class GrowthState:
    """The present global batch, samples."""

    total: int


class NoiseScalePolicy:
    """See `hpclbfl.batching.BatchPolicy`.

    Args:
        max_local: largest batch of a client, samples.
        max_total: largest global batch, samples.
    """

    needs_seconds = False
    warnings: tuple[str, ...] = ()

    def __init__(self, max_local: int, max_total: int) -> None:
        self._max_local, self._max_total = max_local, max_total

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, GrowthState]:
        """The job's sizes."""
        return Plan(sizes, "start"), GrowthState(sum(sizes))

    def update(self, seen: Observation, state: GrowthState) -> tuple[Plan | None, GrowthState]:
        """At the end of an epoch: B_simple within bounds, if it exceeds B by the factor HYSTERESIS."""
        if not seen.ends_epoch or not math.isfinite(seen.b_simple):
            return None, state
        clients = len(seen.sizes)
        total = int(min(seen.b_simple, self._max_total, self._max_local * clients))
        if total < HYSTERESIS * state.total:
            return None, state
        return Plan(even(total, clients), f"noise scale {seen.b_simple:.0f} samples"), GrowthState(total)


@POLICIES.register("noise_scale", NoiseScaleConfig)
def make_noise_scale(
    config: NoiseScaleConfig, job: JobConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> NoiseScalePolicy:
    """See the module.

    Raises:
        ConfigError: the noise scale is not measured.
    """
    if job.gradients.noise_scale is None:
        raise ConfigError("batching.policy noise_scale needs the noise scale: give gradients.noise_scale: {}")
    max_local = min(config.max_local_batch_size or sum(sizes), max(1, *capacity))
    return NoiseScalePolicy(max_local, config.max_global_batch_size)

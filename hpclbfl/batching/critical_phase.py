"""A global batch that is large outside critical phases.

S. Agarwal et al., "Accordion: Adaptive Gradient Communication via Critical Learning Regime Identification", MLSys 2021,
train with a small batch in critical phases, where large ones cost accuracy, and with a large one elsewhere. At the end
of every epoch the change that a detector sees is compared with a threshold: from it upwards, and where it is not known,
the phase is critical and B is the job's; below it, every client's batch is `factor` times as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from hpclbfl.batching import Observation, Plan
from hpclbfl.config.component_configs import with_threshold
from hpclbfl.config.components import POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import DetectorConfig, WatchedDetector
from hpclbfl.config.sections.base import NonNegativeFloat, Number
from hpclbfl.config.sections.batching import ResizedConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.state import checkpointed


class CriticalPhaseConfig(ResizedConfig):
    """B is the job's in critical phases of training, and larger elsewhere."""

    factor: Annotated[Number, Field(gt=1.0, le=1e6)]
    """How many times as large each client's batch is outside critical phases, within `max_local_batch_size` and what
    the client holds."""
    change: WatchedDetector = "accordion"
    """What tells critical phases: accordion, any other detector, such as `{name: accordion, interval_epochs: 1}`, or
    one of your own. Its change is looked at where an epoch ends; one that is not known counts as critical."""
    threshold: NonNegativeFloat = 0.5
    """Of the change, from which a phase is critical; default: the detector's for the scaler, 0.5 for accordion."""

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, "accordion", "scaler_threshold")

    @property
    def watched_change(self) -> str | DetectorConfig:
        """See `BatchingConfig`."""
        return self.change

    def check(self, job: Any) -> None:
        """See `BatchingConfig`."""
        if job.sync.trains_alone:
            raise ValueError("batching.policy critical_phase: for a model that the clients share, under sync bsp")


@checkpointed
@dataclass(frozen=True)
class PhaseState:
    """Whether the phase is critical."""

    is_critical: bool


class CriticalPhase:
    """See `hpclbfl.batching.BatchPolicy`.

    Args:
        critical, other: b_c of every client in critical phases and outside of them, samples.
        threshold: of the change.
    """

    needs_seconds = False
    warnings: tuple[str, ...] = ()

    def __init__(self, critical: Sequence[int], other: Sequence[int], threshold: float) -> None:
        self._critical, self._other, self._threshold = tuple(critical), tuple(other), threshold

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, PhaseState]:
        """The job's sizes: no change is known yet."""
        return Plan(sizes, "start"), PhaseState(is_critical=True)

    def update(self, seen: Observation, state: PhaseState) -> tuple[Plan | None, PhaseState]:
        """At the end of an epoch in which the phase has become another one: its sizes."""
        if not seen.ends_epoch:
            return None, state
        is_critical = not seen.change < self._threshold
        if is_critical == state.is_critical:
            return None, state
        told = "change is not known" if math.isnan(seen.change) else f"change {seen.change:.3g}"
        if is_critical:
            return Plan(self._critical, f"critical phase: {told}"), PhaseState(is_critical)
        return Plan(self._other, f"no critical phase: {told}"), PhaseState(is_critical)


@POLICIES.register("critical_phase", CriticalPhaseConfig)
def make_critical_phase(
    config: CriticalPhaseConfig, job: JobConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> CriticalPhase:
    """See the module.

    Raises:
        ConfigError: the job's own batches are above the bound.
    """
    most = config.max_local_batch_size
    if most is not None and most < max(sizes):
        raise ConfigError(f"batching.max_local_batch_size: {most} is less than the {max(sizes)} samples of a client")
    most = most or max(capacity)
    # Where all samples are dealt anew, each client could have all of them, but only one at a time.
    anew, total = job.partition.is_reshuffled, sum(sizes)
    held = [own * size // total if anew else own for own, size in zip(capacity, sizes, strict=True)]
    larger = [max(size, min(round(config.factor * size), own, most)) for size, own in zip(sizes, held, strict=True)]
    return CriticalPhase(sizes, larger, config.threshold)

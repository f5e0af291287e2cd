"""Batch sizes in proportion to speed, as measured by `hpclbfl plan` or during a warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from hpclbfl.batching import BatchPolicy, FloatArray, Plan
from hpclbfl.batching.bounds import bounds_of_ranks, check_bounds
from hpclbfl.batching.dynamic import WINDOW, Dynamic
from hpclbfl.batching.fixed import Fixed
from hpclbfl.batching.plan_file import check_plan, load_plan
from hpclbfl.batching.share import balance
from hpclbfl.config.components import POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections.base import PathText, PositiveInt
from hpclbfl.config.sections.batching import BoundedConfig

WARMUP = "warmup"


class ProportionalConfig(BoundedConfig):
    """Batches in proportion to the ranks' speed, constant in time."""

    source: Annotated[PathText, Field(alias="from")]
    """`warmup`, or the plan.yaml of `hpclbfl plan`, relative to the job file."""
    window: PositiveInt | None = None
    """warmup: steps between two decisions; null: 5."""

    @model_validator(mode="after")
    def _window_of_a_warmup(self) -> ProportionalConfig:
        if self.window is not None and self.source != WARMUP:
            raise ValueError("'window' goes with policy dynamic, or proportional from a warm-up")
        return self

    @property
    def plan_file(self) -> str | None:
        """See `BatchingConfig`."""
        return None if self.source == WARMUP else self.source

    def with_plan_file(self, path: str) -> ProportionalConfig:
        """See `BatchingConfig`."""
        return self.model_copy(update={"source": path})

    @property
    def num_timed_steps(self) -> int:
        """See `BatchingConfig`."""
        return (self.window or WINDOW) if self.source == WARMUP else 0


class Proportional(Fixed):
    """See `hpclbfl.batching.BatchPolicy`.

    Args:
        fixed_s: [R] part of the step time that does not depend on the batch, s.
        per_sample_s: [R] time per sample, s.
        low: [R] lower bounds, samples.
        high: [R] upper bounds, samples.
        warnings: why the time model may be wrong.
    """

    def __init__(
        self,
        fixed_s: FloatArray,
        per_sample_s: FloatArray,
        low: Sequence[int],
        high: Sequence[int],
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.warnings = warnings
        self._fixed_s, self._per_sample_s, self._low, self._high = fixed_s, per_sample_s, low, high

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, None]:
        """The job's global batch, split so that the predicted step time is minimal."""
        split = balance(sum(sizes), self._fixed_s, self._per_sample_s, self._low, self._high)
        return Plan(split, "measured speeds"), None


@POLICIES.register("proportional", ProportionalConfig)
def make_proportional(
    config: ProportionalConfig, job: JobConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> BatchPolicy:
    """From a plan, or from the times of the first windows of steps.

    Raises:
        ConfigError: see `hpclbfl.batching.bounds`; or the plan does not match the job.
    """
    low, high = bounds_of_ranks(config, num_ranks, sizes, capacity)
    if config.plan_file is None:
        check_bounds(low, high, sizes)
        return Dynamic(low, high, config.window or WINDOW, min_gain=0.01, max_changes=2)
    plan = load_plan(Path(config.plan_file))
    check_plan(plan, job, num_ranks)
    high = [min(bound, rank.max_batch) for bound, rank in zip(high, plan.ranks, strict=True)]
    check_bounds(low, high, sizes)
    fixed_s = np.array([rank.t_fixed_s for rank in plan.ranks])
    per_sample_s = np.array([rank.t_per_sample_s for rank in plan.ranks])
    doubts = (f"{plan.doubts()}: the shares may not follow the speeds ({plan.path})",) if plan.warnings else ()
    return Proportional(fixed_s, per_sample_s, low, high, doubts)

"""Sections of a job file: what all batch policies share, and emulated heterogeneous devices."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.sections.base import NonNegativeInt, Number, PositiveInt, Section
from hpclbfl.config.sections.gradients import DetectorConfig

Slowdown = Annotated[Number, Field(ge=1.0, le=1000.0)]


class BatchingConfig(Section):
    """How many samples each client processes per step; see `hpclbfl.batching`."""

    policy: str
    """How batches are chosen, and whether they change."""
    local_batch_size: PositiveInt | tuple[PositiveInt, ...] | None = None
    """b_c: one for all clients, or a list with one per client."""
    global_batch_size: PositiveInt | None = None
    """B, spread as evenly as can be over the clients."""

    is_fixed: ClassVar[bool] = False
    """Whether batches never change."""
    keeps_global_batch: ClassVar[bool] = True
    """Whether B stays what the job says."""

    @field_validator("local_batch_size", mode="before")
    @classmethod
    def _number_or_list(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(size) in (int, float) and size > 0 for size in sizes):
            raise ValueError("should be a whole number above 0, or a list with one for each client")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> BatchingConfig:
        if (self.local_batch_size is None) == (self.global_batch_size is None):
            raise ValueError("give exactly one of 'local_batch_size' and 'global_batch_size'")
        return self

    @property
    def plan_file(self) -> str | None:
        """Path of the plan.yaml that it reads, if it does."""
        return None

    def with_plan_file(self, path: str) -> BatchingConfig:
        """Return the section with another path of the plan that it reads."""
        raise NotImplementedError

    def at_least(self, smallest: int) -> BatchingConfig:
        """Return the section with a lower bound of b_c, for policies that move it."""
        return self

    @property
    def watched_change(self) -> str | DetectorConfig | None:
        """What tells the change of the gradient that it decides by, a key of type `WatchedDetector`; None: nothing."""
        return None

    @property
    def most(self) -> int:
        """Bound of B where it grows, samples; 0: none."""
        return 0

    @property
    def num_timed_steps(self) -> int:
        """Steps before an averaging whose times it wants to know."""
        return 0

    def lr_factor(self, growth: float) -> float:
        """What the learning rate is multiplied with once B is so many times as large as at first."""
        return 1.0

    def check(self, job: Any) -> None:
        """Refuse a job, a `JobConfig`, that this policy does not fit. Raises ValueError."""


class ResizedConfig(BatchingConfig):
    """What policies share under which B does not stay what the job says."""

    max_local_batch_size: PositiveInt | None = None
    """Upper bound of b_c."""
    lr_rule: Literal["none", "linear", "sqrt"] | None = None
    """How the learning rate follows B; null: none."""

    keeps_global_batch: ClassVar[bool] = False

    def lr_factor(self, growth: float) -> float:
        """See `BatchingConfig`."""
        if self.lr_rule in (None, "none"):
            return 1.0
        return growth if self.lr_rule == "linear" else growth**0.5


class BoundedConfig(BatchingConfig):
    """Bounds of b_c, which a policy keeps to."""

    min_local_batch_size: PositiveInt | None = None
    """Lower bound of b_c."""
    max_local_batch_size: PositiveInt | None = None
    """Upper bound of b_c."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> BoundedConfig:
        low, high = self.min_local_batch_size, self.max_local_batch_size
        if low is not None and high is not None and low > high:
            raise ValueError("'min_local_batch_size' is above 'max_local_batch_size'")
        return self

    def at_least(self, smallest: int) -> BoundedConfig:
        """See `BatchingConfig`."""
        return self.model_copy(update={"min_local_batch_size": max(smallest, self.min_local_batch_size or 1)})


class EmulatedChange(Section):
    """A rank whose speed changes in mid-run."""

    step: NonNegativeInt
    """First step at the new speed."""
    rank: NonNegativeInt
    """Whose speed changes."""
    factor: Slowdown
    """Its slow-down from then on."""


class EmulateConfig(Section):
    """Emulates heterogeneous devices on identical ones; results do not change."""

    slowdown: tuple[Slowdown, ...] | None = None
    """One for each rank: how many times as long it computes."""
    jitter: Annotated[Number, Field(ge=0.0, le=2.0)] = 0.0
    """Standard deviation of the logarithm of a further factor, drawn for every step and rank."""
    at: tuple[EmulatedChange, ...] = ()
    bandwidth: Annotated[Number, Field(ge=1e-3, le=1e9)] | None = None
    """Of each rank's link, MB/s."""
    memory_limit: Annotated[Number, Field(gt=0.0, le=1e6)] | None = None
    """Of each rank's device, GB; the planner keeps to it."""

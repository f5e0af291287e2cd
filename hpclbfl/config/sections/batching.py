"""Sections of a job file: batch sizes, and devices that are made unlike."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.sections.base import Fraction, NonNegativeInt, Number, PathText, PositiveInt, Section

Slowdown = Annotated[Number, Field(ge=1.0, le=1000.0)]


class BatchingConfig(Section):
    """How many samples each client processes per step."""

    policy: Literal["fixed", "proportional", "dynamic", "noise_scale"] = "fixed"
    """proportional: to the ranks' speed, from a plan or a warm-up; dynamic: to the speed as it changes; noise_scale: B
    grows with the gradient noise scale."""
    local_batch_size: PositiveInt | tuple[PositiveInt, ...] | None = None
    """b_c: one for all clients, or a list with one per client."""
    global_batch_size: PositiveInt | None = None
    """B, spread as evenly as can be over the clients."""
    source: Annotated[PathText | None, Field(alias="from")] = None
    """proportional: `warmup`, or the plan.yaml that `hpclbfl plan` wrote, relative to the job file."""
    window: PositiveInt | None = None
    """dynamic, and a warm-up: steps between two decisions; null: 5."""
    min_gain: Fraction | None = None
    """dynamic: least gain of the predicted step for which batches change; null: 0.03."""
    min_local_batch_size: PositiveInt | None = None
    max_local_batch_size: PositiveInt | None = None
    """Bounds of b_c that every policy keeps to."""
    max_global_batch_size: PositiveInt | None = None
    """noise_scale: bound of B."""
    lr_rule: Literal["none", "linear", "sqrt"] | None = None
    """noise_scale: how the learning rate follows B; null: none."""

    @field_validator("local_batch_size", mode="before")
    @classmethod
    def _number_or_list(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(size) in (int, float) and size > 0 for size in sizes):
            raise ValueError("should be a whole number above 0, or a list with one for each client")
        return value

    @model_validator(mode="after")
    def _own_keys(self) -> BatchingConfig:
        if (self.local_batch_size is None) == (self.global_batch_size is None):
            raise ValueError("give exactly one of 'local_batch_size' and 'global_batch_size'")
        if (self.source is not None) != (self.policy == "proportional"):
            raise ValueError("'from' (warmup, or a plan.yaml) goes with policy proportional, and only with it")
        if self.window is not None and self.policy != "dynamic" and self.source != "warmup":
            raise ValueError("'window' goes with policy dynamic, or proportional from a warm-up")
        if self.min_gain is not None and self.policy != "dynamic":
            raise ValueError("'min_gain' goes with policy dynamic")
        if self.policy != "noise_scale" and (self.max_global_batch_size is not None or self.lr_rule is not None):
            raise ValueError("'max_global_batch_size' and 'lr_rule' go with policy noise_scale")
        if self.policy == "noise_scale" and self.max_global_batch_size is None:
            raise ValueError("policy noise_scale needs 'max_global_batch_size'")
        if self.policy == "noise_scale" and self.min_local_batch_size is not None:
            raise ValueError("'min_local_batch_size' goes with the policies proportional and dynamic")
        bounds = (self.min_local_batch_size, self.max_local_batch_size)
        if self.policy == "fixed" and bounds != (None, None):
            raise ValueError("'min_local_batch_size' and 'max_local_batch_size' go with the other policies")
        if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
            raise ValueError("'min_local_batch_size' is above 'max_local_batch_size'")
        return self


class EmulatedChange(Section):
    """A rank whose speed changes in mid-run."""

    step: NonNegativeInt
    """First step at the new speed."""
    rank: NonNegativeInt
    factor: Slowdown
    """Its slow-down from then on."""


class EmulateConfig(Section):
    """Unlike devices out of like ones; results do not change."""

    slowdown: tuple[Slowdown, ...] | None = None
    """One for each rank: how many times as long it computes."""
    jitter: Annotated[Number, Field(ge=0.0, le=2.0)] = 0.0
    """Standard deviation of the logarithm of a further factor, drawn for every step and rank."""
    at: tuple[EmulatedChange, ...] = ()
    bandwidth: Annotated[Number, Field(ge=1e-3, le=1e9)] | None = None
    """Of each rank's link, MB/s."""
    memory_limit: Annotated[Number, Field(gt=0.0, le=1e6)] | None = None
    """Of each rank's device, GB; the planner keeps to it."""

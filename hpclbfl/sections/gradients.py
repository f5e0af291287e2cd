"""Section of a job file: what happens between the reduced gradient and the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, StrictBool, model_validator

from hpclbfl.sections.base import Section


class ScalerConfig(Section):
    """The step-up function of Eq. 6: the gradient is multiplied by `factor` in some steps."""

    factor: PositiveFloat
    """X; 1 changes nothing."""
    threshold: NonNegativeFloat = 0.5
    """Of the relative change of the squared gradient norm (Eq. 8)."""
    when: Literal["delta_ge", "delta_lt", "always", "never", "random"] = "delta_ge"
    """delta_ge: where the change reaches the threshold, as the paper evaluated it; delta_lt: where it stays below, as
    its Eq. 6 reads (the two contradict each other); always, never, random: controls."""
    duty: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """random: share of the steps that are scaled."""

    @model_validator(mode="after")
    def _own_keys(self) -> ScalerConfig:
        if (self.duty is not None) != (self.when == "random"):
            raise ValueError("'duty' goes with when: random, and only with it")
        return self


class GradientsConfig(Section):
    """What happens between the reduced gradient and the optimizer."""

    scaler: ScalerConfig | None = None
    measure: StrictBool = True
    """Log the squared norm and its relative change also where nothing is scaled."""

"""Section of a job file: what happens between the reduced gradient and the optimizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from hpclbfl.config.sections.base import (
    Fraction,
    NonNegativeFloat,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    with_threshold,
)
from hpclbfl.config.thresholds import SCALER


class ScalerConfig(Section):
    """The step-up function of Eq. 6: the gradient is multiplied by `factor` in some steps."""

    factor: PositiveFloat
    """X; 1 changes nothing."""
    threshold: NonNegativeFloat = 0.5
    """Of the relative change of the squared gradient norm (Eq. 8); default 0.5, under change selsync 0.02."""
    when: Literal["delta_ge", "delta_lt", "always", "never", "random"] = "delta_ge"
    """delta_ge: where the change reaches the threshold, as the paper evaluated it; delta_lt: where it stays below, as
    its Eq. 6 reads (the two contradict each other); always, never, random: controls."""
    duty: Share | None = None
    """random: share of the steps that are scaled."""
    change: Literal["squared_norm", "selsync"] = "squared_norm"
    """squared_norm: Eq. 8; selsync: of the layers' norms, smoothed over 25 steps, in which it is not known."""

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, SCALER, "squared_norm")

    @model_validator(mode="after")
    def _own_keys(self) -> ScalerConfig:
        if (self.duty is not None) != (self.when == "random"):
            raise ValueError("'duty' goes with when: random, and only with it")
        # Whatever `change` is, older versions filled in 0.5.
        if self.threshold not in (0.5, SCALER[self.change]) and self.when not in ("delta_ge", "delta_lt"):
            raise ValueError(f"'threshold' goes with when: delta_ge or delta_lt, not {self.when}")
        return self


class NoiseScaleConfig(Section):
    """The gradient noise scale, estimated in every step of a shared model."""

    decay: Fraction = 0.95
    """Weight of the averages over steps, of which b_simple is the ratio, against the newest step."""


class GradientsConfig(Section):
    """What happens between the clients' gradients and the optimizer."""

    scaler: ScalerConfig | None = None
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient, before the scaler's factor."""
    weight_noise: Annotated[Number, Field(gt=0.0, le=1e6)] | None = None
    """s: noise in the clients' weights that makes the gradient's covariance 1 + s^2 times as large, as a batch of
    B / (1 + s^2) has it."""
    extrapolation_lr: PositiveFloat | None = None
    """Each client takes its gradient at a point extrapolated by this rate along its last one (extrapolated SGD)."""
    compression: Literal["none", "fp16"] = "none"
    """fp16: gradients travel, and are summed, in half precision."""
    measure: StrictBool = True
    """Log the squared norm and its relative change also where nothing is scaled."""
    noise_scale: NoiseScaleConfig | None = None
    layers_every: PositiveInt | None = None
    """Log each parameter's squared norm every so many steps."""

    @model_validator(mode="after")
    def _fit(self) -> GradientsConfig:
        if not self.measure and (self.scaler or self.clip_norm or self.noise_scale):
            raise ValueError("'measure: false' leaves 'scaler', 'clip_norm' and 'noise_scale' without their norm")
        if self.noise_scale is not None and self.weight_noise is not None:
            raise ValueError("'noise_scale' cannot be measured under 'weight_noise'")
        if self.noise_scale is not None and self.compression != "none":
            raise ValueError("'noise_scale' needs 'compression: none'")
        return self

    @property
    def shared_only(self) -> list[str]:
        """Keys in use that need gradients which are summed over the clients."""
        keys = ("weight_noise", "extrapolation_lr", "noise_scale", "layers_every")
        used = [key for key in keys if getattr(self, key) is not None]
        return used + (["compression"] if self.compression != "none" else [])

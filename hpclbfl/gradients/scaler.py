"""The step-up function of the paper's Eq. 6: the update is scaled by X in some steps and left alone in others.

S. Tyagi, "On Using Large-Batches in Federated Learning", section III-B. The paper says which steps in two ways that
exclude each other: by Eq. 6 the factor is 1 in critical phases and X otherwise, and in the work it cites a large change
is critical; by the description of its experiments a change of at least the threshold gives X and a smaller one 1. What
it observed (a higher threshold left most steps at 1) fits the second alone. So the side is an option:

    delta_ge  X where delta >= threshold, as evaluated in the paper; the default
    delta_lt  X where delta < threshold, as Eq. 6 reads
    always    X in every step, the first one too: the control that equals a learning rate of X lr with a decay of wd / X
    never     1: the baseline
    random    X in a share `duty` of the steps, drawn from the seed: the control of equal duty

The noise of Eq. 7, (X - 1) G, is parallel to G: scaling adds no independent noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from hpclbfl.config.component_configs import detector_config, with_threshold
from hpclbfl.config.components import DETECTORS, TRANSFORMS
from hpclbfl.config.sections import DetectorConfig, DetectorName, GradientsConfig, TransformConfig
from hpclbfl.config.sections.base import NonNegativeFloat, PositiveFloat, Share
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.change import ChangeState, Detector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

When = Literal["delta_ge", "delta_lt", "always", "never", "random"]
_GATE_STREAM = 4


class ScalerConfig(TransformConfig):
    """The step-up function of Eq. 6: the gradient is multiplied by `factor` in some steps."""

    name: Literal["scaler"] = Field("scaler", exclude=True)
    factor: PositiveFloat
    """X; 1 changes nothing."""
    threshold: NonNegativeFloat = 0.5
    """Of the relative change of the squared gradient norm (Eq. 8); default: the detector's, 0.5 for squared_norm."""
    when: When = "delta_ge"
    """delta_ge: where the change reaches the threshold, as the paper evaluated it; delta_lt: where it stays below, as
    its Eq. 6 reads (the two contradict each other); always, never, random: controls."""
    duty: Share | None = None
    """random: share of the steps that are scaled."""
    change: DetectorName = "squared_norm"
    """squared_norm: Eq. 8; selsync: of the layers' norms, smoothed over 25 steps, in which it is not known; another
    detector, see below; or one of your own."""

    place: ClassVar[int] = 2

    @classmethod
    def of_section(cls, gradients: GradientsConfig) -> TransformConfig | None:
        """See `TransformConfig`."""
        return gradients.scaler

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, "squared_norm", "scaler_threshold")

    @model_validator(mode="after")
    def _own_keys(self) -> ScalerConfig:
        if (self.duty is not None) != (self.when == "random"):
            raise ValueError("'duty' goes with when: random, and only with it")
        # Whatever `change` is, older versions filled in 0.5.
        usual = (0.5, detector_config(self.change).scaler_threshold)
        if self.threshold not in usual and self.when not in ("delta_ge", "delta_lt"):
            raise ValueError(f"'threshold' goes with when: delta_ge or delta_lt, not {self.when}")
        return self


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


@checkpointed
@dataclass(frozen=True)
class ScalerState:
    """What the next step's factor depends on, and what the last one's was."""

    detector: ChangeState = field(default_factory=ChangeState)
    scale: Tensor = field(default_factory=_one)
    """X or 1, of the newest step."""


@dataclass(frozen=True)
class StepUpScale:
    """A `hpclbfl.gradients.GradientTransform`.

    Where the change is not known (in the first step, or the first 25 under SelSync's), the delta gates give 1.
    """

    factor: float
    threshold: float = 0.5
    when: When = "delta_ge"
    duty: float = 1.0
    """random: share of the steps that are scaled."""
    change: str | DetectorConfig = "squared_norm"

    @cached_property
    def detector(self) -> Detector:
        """What tells the change."""
        made: Detector = DETECTORS.make(detector_config(self.change))
        return made

    @property
    def needs_layers(self) -> bool:
        """Whether the change is taken from the layers' norms."""
        return self.detector.needs_layers

    @property
    def reads_values(self) -> bool:
        """Whether the change is taken from more than norms; of a detector of the user's own that is not known."""
        config = detector_config(self.change)
        return not config.takes_norms_only or ":" in config.name

    @property
    def is_identity(self) -> bool:
        """Whether it only measures."""
        return self.when == "never" or self.factor == 1.0

    def init(self, layout: Layout | None = None) -> ScalerState:
        """No predecessor yet."""
        return ScalerState(self.detector.init(layout))

    def update(self, gradient: Gradient, state: ScalerState, ctx: Context) -> tuple[Gradient, ScalerState, Metrics]:
        """X or 1 becomes part of the factor; the metrics are `grad_change` and `scale`."""
        seen = self.detector.observe(gradient.measured, state.detector, ctx)
        factor = torch.full_like(seen.change, self.factor)
        scale = torch.where(self._fires(seen.change, ctx), factor, 1.0)
        return gradient.scaled(scale), ScalerState(seen, scale), {"grad_change": seen.change, "scale": scale}

    def _fires(self, change: Tensor, ctx: Context) -> Tensor:
        if self.when == "delta_ge":
            return change >= self.threshold
        if self.when == "delta_lt":
            return change < self.threshold
        if self.when == "random":
            # The same draw on every rank: keyed by what all of them know.
            key = np.random.SeedSequence(ctx.seed, spawn_key=(_GATE_STREAM, ctx.client + 1, ctx.step))
            fires = bool(np.random.Generator(np.random.Philox(key)).random() < self.duty)
        else:
            fires = self.when == "always"
        return torch.full_like(change, fires, dtype=torch.bool)


@TRANSFORMS.register("scaler", ScalerConfig)
def make_scaler(config: ScalerConfig) -> StepUpScale:
    """See the module."""
    duty = 1.0 if config.duty is None else config.duty
    return StepUpScale(config.factor, config.threshold, config.when, duty, config.change)

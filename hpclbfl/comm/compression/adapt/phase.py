"""The level by critical phase: weak compression while the gradient changes fast, strong compression else.

S. Agarwal et al., "Accordion: Adaptive Gradient Communication via Critical Learning Regime Identification", MLSys 2021.
While the detector does not know a change the phase counts as critical, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from hpclbfl.comm.compression.adapt import Seen
from hpclbfl.config.component_configs import detector_config, with_threshold
from hpclbfl.config.components import ADAPTERS, DETECTORS
from hpclbfl.config.sections import DetectorName
from hpclbfl.config.sections.base import NonNegativeFloat, PositiveFloat
from hpclbfl.config.sections.compression import AdaptConfig
from hpclbfl.core.state import checkpointed

if TYPE_CHECKING:
    from hpclbfl.gradients.gradient import Layout


class PhaseConfig(AdaptConfig):
    """The level by critical phase (Accordion)."""

    to: PositiveFloat
    """Level outside of critical phases: a ratio, or a rank."""
    change: DetectorName = "squared_norm"
    """Detector of a change of the gradient: by name, or one of your own."""
    threshold: NonNegativeFloat = 0.5
    """Of the change, from which a phase is critical; default: the detector's."""

    @property
    def strongest(self) -> float:
        """See `AdaptConfig`."""
        return self.to

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, "squared_norm", "scaler_threshold")


@checkpointed
@dataclass(frozen=True)
class PhaseState:
    """What the next level depends on."""

    detector: Any
    is_critical: bool


@ADAPTERS.register("phase", PhaseConfig)
class Phase:
    """A `hpclbfl.comm.compression.adapt.Adapter`."""

    def __init__(self, config: PhaseConfig) -> None:
        self._to, self._threshold = config.to, config.threshold
        self._detector: Any = DETECTORS.make(detector_config(config.change))

    def init(self, layout: Layout) -> PhaseState:
        """Critical."""
        return PhaseState(self._detector.init(layout), is_critical=True)

    def level(self, weakest: float, state: PhaseState) -> float:
        """See `Adapter`."""
        return weakest if state.is_critical else self._to

    def update(self, seen: Seen, weakest: float, state: PhaseState) -> PhaseState:
        """On a GPU the host waits for the change."""
        detector = self._detector.observe(seen.gradient, state.detector, seen.context)
        return PhaseState(detector, is_critical=not bool(detector.change < self._threshold))

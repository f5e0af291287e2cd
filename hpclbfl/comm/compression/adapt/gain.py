"""The level by the compression gain, |C(p)|^2 / |p|^2 = 1 - phi: as strong as the gain stays high.

S. Tyagi, M. Swany, "GraVAC: Adaptive Compression for Communication-Efficient Distributed DL Training", IEEE CLOUD 2023.
The gain is averaged over a window; above the threshold the level is halved, below it doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hpclbfl.comm.compression.adapt import Seen
from hpclbfl.config.components import ADAPTERS
from hpclbfl.config.sections.base import PositiveFloat, PositiveInt, Share
from hpclbfl.config.sections.compression import AdaptConfig
from hpclbfl.core.state import checkpointed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

_STEP = 2.0


class GainConfig(AdaptConfig):
    """The level by the share of the gradient's energy that is sent (GraVAC)."""

    to: PositiveFloat
    """Lowest level."""
    threshold: Share = 0.7
    """Of the gain, above which compression becomes stronger."""
    window: PositiveInt = 20
    """Steps over which the gain is averaged."""

    needs_error: ClassVar[bool] = True

    @property
    def strongest(self) -> float:
        """See `AdaptConfig`."""
        return self.to


@checkpointed
@dataclass(frozen=True)
class GainState:
    """What the next level depends on."""

    level: float
    """0 before the first step: the compressor's own."""
    total: Tensor
    """Sum of the gains in the window, 0-d float64."""
    count: int


@ADAPTERS.register("gain", GainConfig)
class Gain:
    """A `hpclbfl.comm.compression.adapt.Adapter`."""

    def __init__(self, config: GainConfig) -> None:
        self._to, self._threshold, self._window = config.to, config.threshold, config.window

    def init(self, layout: Layout) -> GainState:
        """See `Adapter`."""
        return GainState(0.0, torch.zeros((), dtype=torch.float64), 0)

    def level(self, weakest: float, state: GainState) -> float:
        """See `Adapter`."""
        return state.level or weakest

    def update(self, seen: Seen, weakest: float, state: GainState) -> GainState:
        """At the end of a window; gradients that are zero or not finite have no gain."""
        if seen.error is None:
            return state
        gain = (1.0 - seen.error.double()).to(state.total.device)
        is_known = bool(gain.isfinite())
        total, count = state.total + (gain if is_known else 0.0), state.count + is_known
        if count < self._window:
            return GainState(state.level, total, count)
        level, mean = state.level or weakest, float(total / count)
        level = max(self._to, level / _STEP) if mean >= self._threshold else min(weakest, level * _STEP)
        return GainState(level, torch.zeros_like(total), 0)

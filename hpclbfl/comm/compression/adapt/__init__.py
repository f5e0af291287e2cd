"""Rules by which the level of compression follows training: a ratio, or a rank.

A rule is a pure function of what all ranks know, so that all of them change it in the same step, and its state is
checkpointed. Levels go from the compressor's own, the weakest compression, down to `to`, the strongest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient, Layout


@dataclass(frozen=True)
class Seen:
    """What all ranks know after a step, or after an averaging."""

    gradient: Gradient
    """The sum as it arrived, or what local training has changed."""
    context: Context
    error: Tensor | None
    """phi: |p - C(p)|^2 / |p|^2 over all clients, 0-d float64; None for compressors of ranks' sums."""


class Adapter(Protocol):
    """See the module."""

    def init(self, layout: Layout) -> Any:
        """The state before the first step."""

    def level(self, weakest: float, state: Any) -> float:
        """For the coming step; `weakest`: the compressor's own level."""

    def update(self, seen: Seen, weakest: float, state: Any) -> Any:
        """The state after a step."""

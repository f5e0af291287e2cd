"""Detectors that are watched: measured in every step, on the gradient as it was reduced, without changing anything.

A job lists those whose course it wants to see under `gradients.watch`; a section that decides by a detector names it by
a key of type `WatchedDetector`, and reads the change from `hpclbfl.gradients.chain.Chain.change_of`. Each is measured
once, whoever names it. The log's table `metrics` has two numbers of each, per client in local training:

    <name> change    relative change; NaN where it is not known
    <name> fires     1 where the change reaches the threshold, 0 where it does not, NaN where it is not known
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.detectors import Watched, without_threshold
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.change import ChangeState, Detector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class Watch:
    """A `hpclbfl.gradients.GradientTransform` that leaves the gradient as it is.

    Args:
        watched: the detectors, of different labels.
    """

    is_identity = True

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = tuple(watched)
        self._detectors: list[Detector] = [DETECTORS.make(one.config) for one in watched]
        # A class of the user's own may leave this away.
        self.needs_layers = any(getattr(detector, "needs_layers", False) for detector in self._detectors)

    def init(self, layout: Layout | None = None) -> tuple[ChangeState, ...]:
        """No predecessor yet; a state of each detector."""
        return tuple(detector.init(layout) for detector in self._detectors)

    def update(
        self, gradient: Gradient, state: tuple[ChangeState, ...], ctx: Context
    ) -> tuple[Gradient, tuple[ChangeState, ...], Metrics]:
        """The metrics are those that the module lists."""
        after: list[ChangeState] = []
        metrics: Metrics = {}
        for one, detector, before in zip(self._watched, self._detectors, state, strict=True):
            seen = detector.observe(gradient, before, ctx)
            after.append(seen)
            fires = torch.where(seen.change.isnan(), torch.nan, (seen.change >= one.threshold).double())
            metrics |= {f"{one.label} change": seen.change, f"{one.label} fires": fires}
        return gradient, tuple(after), metrics

    def change_of(self, detector: str | DetectorConfig, state: tuple[ChangeState, ...]) -> Tensor:
        """The newest change that a detector sees, whatever its threshold. Raises LookupError: it is not watched."""
        wanted = without_threshold(detector)
        for one, seen in zip(self._watched, state, strict=True):
            if one.config == wanted:
                return seen.change
        raise LookupError(f"detector {wanted.name!r} is not watched")

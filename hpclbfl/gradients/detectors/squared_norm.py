"""Eq. 8 of the paper: the relative change of the squared norm of the whole gradient against the step before.

    delta_i = | |G_i|^2 - |G_(i-1)|^2 | / |G_(i-1)|^2

G is the reduced gradient, unscaled; in local training the client's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.gradients.change import RESOLUTION, ChangeState, relative

if TYPE_CHECKING:
    import torch

    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class SquaredNormConfig(DetectorConfig):
    """Eq. 8: the relative change of the squared norm of the whole gradient against the step before.

    The threshold of an averaging, 1.0, is reached in 28 % of the steps on CIFAR-10 and in 85 % on the digits (ten
    clients, resnet8, b_c = 16; 2000 images of 8 px, 200 steps; 72 steps). That of the scaler is the paper's.
    """

    scaler_threshold: ClassVar[float] = 0.5
    averaging_threshold: ClassVar[float] = 1.0


@DETECTORS.register("squared_norm", SquaredNormConfig)
class SquaredNormChange:
    """See the module; a `hpclbfl.gradients.change.Detector`."""

    needs_layers = False

    def __init__(self, config: DetectorConfig | None = None) -> None:
        pass

    def init(self, layout: Layout | None = None) -> ChangeState:
        """No predecessor."""
        return ChangeState()

    def observe(self, gradient: Gradient, state: ChangeState, ctx: Context) -> ChangeState:
        """Takes the squared norm alone."""
        now = gradient.sq_norm.double()
        previous = state.previous.to(now.device)
        is_finite = torch.isfinite(now)
        change = torch.where(is_finite, relative(now, previous, RESOLUTION**2), torch.nan)
        return ChangeState(previous=torch.where(is_finite, now, previous), change=change)

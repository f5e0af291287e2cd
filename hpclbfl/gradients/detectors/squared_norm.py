"""Eq. 8 of the paper: the relative change of the squared norm of the whole gradient against the step before.

    delta_i = | |G_i|^2 - |G_(i-1)|^2 | / |G_(i-1)|^2

G is the reduced gradient, unscaled; in local training the client's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.gradients.change import RESOLUTION, SquaredNorms, relative

if TYPE_CHECKING:
    from torch import Tensor


class SquaredNormConfig(DetectorConfig):
    """Eq. 8: the relative change of the squared norm of the whole gradient against the step before.

    The threshold of an averaging, 1.0, is reached in 28 % of the steps on CIFAR-10 and in 85 % on the digits (ten
    clients, resnet8, b_c = 16; 2000 images of 8 px, 200 steps; 72 steps). That of the scaler is the paper's.
    """

    scaler_threshold: ClassVar[float] = 0.5
    averaging_threshold: ClassVar[float] = 1.0


@DETECTORS.register("squared_norm", SquaredNormConfig)
class SquaredNormChange(SquaredNorms):
    """See the module; a `hpclbfl.gradients.change.Detector`."""

    def change(self, now: Tensor, previous: Tensor) -> Tensor:
        """|now - previous| / previous; NaN where the predecessor is zero up to rounding."""
        return relative(now, previous, RESOLUTION**2)

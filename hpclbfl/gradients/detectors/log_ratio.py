"""The logarithm of the ratio of two successive squared norms of the whole gradient.

    delta_i = | log(|G_i|^2 / |G_(i-1)|^2) |

It is Eq. 8 of S. Tyagi, "On Using Large-Batches in Federated Learning", made symmetric: a norm that doubles and one
that halves are changes of one size, while Eq. 8 gives 3 and 0.75. A change that Eq. 8 calls c, upwards, is log(1 + c)
here. It is not known (NaN) where one of the two norms is zero up to rounding, see `hpclbfl.gradients.change`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.gradients.change import RESOLUTION, SquaredNorms

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class LogRatioConfig(DetectorConfig):
    """The logarithm of the ratio of two successive squared norms: Eq. 8, made symmetric.

    The threshold of the scaler, log(1.5), is a change of 0.5 upwards under Eq. 8; that of an averaging, log(2), is one
    of 1.0. Neither was chosen from measurements.
    """

    scaler_threshold: ClassVar[float] = math.log(1.5)
    averaging_threshold: ClassVar[float] = math.log(2.0)


@DETECTORS.register("log_ratio", LogRatioConfig)
class LogRatio(SquaredNorms):
    """See the module; a `hpclbfl.gradients.change.Detector`."""

    def change(self, now: Tensor, previous: Tensor) -> Tensor:
        """|log(now / previous)|; NaN where one of the two is zero up to rounding."""
        smaller, larger = torch.minimum(now, previous), torch.maximum(now, previous)
        is_known = smaller >= RESOLUTION**2 * larger.clamp(min=1.0)
        return torch.where(is_known, (now.log() - previous.log()).abs(), torch.nan)

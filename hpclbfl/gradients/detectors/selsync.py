"""SelSync's smoothed change of the layers' norms.

S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023: the norms,
not squared, of the layers are added up, the sum is smoothed over a window of 25 steps, and the relative change of the
smoothed sum is taken. It is known from the 26th step on, when the window has filled and moved once. One step moves the
mean by about a twentieth of what it moves the sum: a sum that becomes ten times as large gives 0.41. The authors'
public code smooths the change over another 25 steps, which leaves 0.095 of that; this is not done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.gradients.change import RESOLUTION, ChangeState, relative

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

WINDOW = 25
"""Steps that are averaged."""
DECAY = 0.99
"""Weight of a step against the one after it, 1 - a with a = 0.01."""


class SelSyncChangeConfig(DetectorConfig):
    """SelSync: the relative change of the sum of the layers' norms, smoothed over 25 steps.

    Measured with ten clients, resnet8 and b_c = 16, as shares of the steps whose change is known. The threshold of an
    averaging, 0.05, is reached in 6 % of the steps on CIFAR-10, i.i.d. (2000 images of 8 px, 200 steps; 9 % with 4000
    images of 32 px), in 23 % with Dirichlet shards of alpha 0.3, and in 96 % on the digits (72 steps). No value suits
    both: 0.1 averages in 30 % on the digits, 0.07 and more never on CIFAR-10, i.i.d. The scaler's, 0.02, is reached in
    77 % of the steps on the digits, in 2 % on CIFAR-10, i.i.d., and in 34 % there with one label per client.
    """

    scaler_threshold: ClassVar[float] = 0.02
    averaging_threshold: ClassVar[float] = 0.05


@DETECTORS.register("selsync", SelSyncChangeConfig)
class SmoothedChange:
    """See the module; a `hpclbfl.gradients.change.Detector`."""

    needs_layers = True

    def __init__(self, config: DetectorConfig | None = None) -> None:
        pass

    def init(self, layout: Layout | None = None) -> ChangeState:
        """An empty window."""
        return ChangeState(window=torch.full((WINDOW,), torch.nan, dtype=torch.float64))

    def observe(self, gradient: Gradient, state: ChangeState, ctx: Context) -> ChangeState:
        """Takes the layers' squared norms."""
        if state.window is None:
            raise ValueError("SelSync's change needs a window")
        now = gradient.layer_sq_norms.double().sqrt().sum()
        is_finite = torch.isfinite(now)
        # A checkpoint's lie on the host.
        before, previous = state.window.to(now.device), state.previous.to(now.device)
        window = torch.cat([now.reshape(1), before[:-1]])
        # NaN until the window has filled.
        smoothed = _weighted_mean(window)
        return ChangeState(
            previous=torch.where(is_finite, smoothed, previous),
            change=torch.where(is_finite, relative(smoothed, previous, RESOLUTION), torch.nan),
            window=torch.where(is_finite, window, before),
        )


def _weighted_mean(window: Tensor) -> Tensor:
    weights = DECAY ** torch.arange(WINDOW, dtype=torch.float64, device=window.device)
    return (weights * window).sum() / weights.sum()

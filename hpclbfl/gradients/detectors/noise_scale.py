"""The relative change of the gradient noise scale.

S. McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, find that B_simple, the ratio of
the gradient's variance over samples to its squared norm, grows as the loss falls. Here a phase is critical where it
moves quickly: the change is that of its running average (`gradients.noise_scale`) against the one `lag` steps before,

    delta_i = | B_i - B_(i-lag) | / B_(i-lag)

It is not known (NaN) where the noise scale is not measured or not positive, which a noisy estimate of it may be, now or
`lag` steps before, and where the gradient is not finite; such a step is not counted among the `lag`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.gradients.change import ChangeState, unknown

if TYPE_CHECKING:
    import torch

    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class NoiseScaleChangeConfig(DetectorConfig):
    """The relative change of the gradient noise scale; it needs `gradients.noise_scale`.

    The thresholds, 0.5, were not chosen from measurements; that of an averaging is never used, as clients that train
    alone have no noise scale.
    """

    lag: PositiveInt = 10
    """Steps between the two noise scales that are compared."""

    takes_norms_only: ClassVar[bool] = False

    def check(self, key: str, job: Any) -> None:
        """See `DetectorConfig`."""
        if not job.sync.sums_gradients:
            raise ValueError(
                f"{key}: noise_scale is for gradients that are summed over clients, under sync bsp and post_local"
            )
        if job.gradients.noise_scale is None:
            raise ValueError(f"{key}: noise_scale needs the noise scale: give gradients.noise_scale: {{}}")


@DETECTORS.register("noise_scale", NoiseScaleChangeConfig)
class NoiseScaleChange:
    """See the module; a `hpclbfl.gradients.change.Detector`."""

    needs_layers = False

    def __init__(self, config: NoiseScaleChangeConfig) -> None:
        self._lag = config.lag

    def init(self, layout: Layout | None = None) -> ChangeState:
        """No noise scale yet."""
        return ChangeState(window=torch.full((self._lag,), torch.nan, dtype=torch.float64))

    def observe(self, gradient: Gradient, state: ChangeState, ctx: Context) -> ChangeState:
        """Takes the running average of the noise scale; the window is of the `lag` newest, the newest first."""
        if state.window is None:
            raise ValueError("the change of the noise scale needs a window")
        is_finite = torch.isfinite(gradient.sq_norm)
        measured = unknown() if ctx.noise is None else ctx.noise.b_simple.double()
        measured = measured.to(is_finite.device)
        now = torch.where(torch.isfinite(measured) & (measured > 0), measured, torch.nan)
        # A checkpoint's lie on the host.
        before, previous = state.window.to(now.device), state.previous.to(now.device)
        change = (now - before[-1]).abs() / before[-1]
        window = torch.cat([now.reshape(1), before[:-1]])
        return ChangeState(
            previous=torch.where(is_finite, now, previous),
            change=torch.where(is_finite, change, torch.nan),
            window=torch.where(is_finite, window, before),
        )

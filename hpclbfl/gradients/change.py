"""The relative gradient change, which tells critical phases: what its detectors share.

It is asymmetric: under Eq. 8 a change of 0.5 is reached at a ratio of norms of 1.22 or 0.71, 0.8 at 1.34 or 0.45.

It is not known (NaN) where the gradient before is zero up to rounding: the gradients of a mean loss are made of
differences of numbers of order 1, as a softmax less its labels, which float32 knows to RESOLUTION. A client of one
label gets there, and the quotient of what is left of such a gradient (1e27 and more) tells of no critical phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from hpclbfl.config.sections import DetectorConfig
from hpclbfl.core.state import checkpointed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

RESOLUTION = 2.0**-23
"""Of float32. A norm below it, or below this part of the next one, is zero up to rounding."""


def unknown() -> Tensor:
    """A change, or a norm, that is not known."""
    return torch.tensor(float("nan"), dtype=torch.float64)


@checkpointed
@dataclass(frozen=True)
class ChangeState:
    """What the next change depends on."""

    previous: Tensor = field(default_factory=unknown)
    """Squared norm of the last finite gradient, or SelSync's smoothed sum; NaN where there is none yet."""
    change: Tensor = field(default_factory=unknown)
    """delta of the newest step; NaN where it is not known yet and where the gradient is not finite."""
    window: Tensor | None = None
    """SelSync: [25] newest sums of norms, the newest first, NaN where there is none yet."""


class Detector(Protocol):
    """A rule that turns a gradient's norms into a relative change.

    Its state is any type that is marked `checkpointed` and has the newest `change`, float64 0-d.
    """

    needs_layers: bool
    """Whether it reads the layers' norms."""

    def init(self, layout: Layout | None) -> ChangeState:
        """Before the first step; `layout`: of the parameters, where it is known."""

    def observe(self, gradient: Gradient, state: ChangeState, ctx: Context) -> ChangeState:
        """Take a step's unscaled gradient; one that is not finite does not become the predecessor."""


class SquaredNorms:
    """What detectors have in common that compare the squared norms of two successive gradients."""

    needs_layers = False

    def __init__(self, config: DetectorConfig | None = None) -> None:
        pass

    def change(self, now: Tensor, previous: Tensor) -> Tensor:
        """Of the squared norm, 0-d; NaN where it is not known."""
        raise NotImplementedError

    def init(self, layout: Layout | None = None) -> ChangeState:
        """No predecessor."""
        return ChangeState()

    def observe(self, gradient: Gradient, state: ChangeState, ctx: Context) -> ChangeState:
        """Takes the squared norm alone."""
        now = gradient.sq_norm.double()
        previous = state.previous.to(now.device)
        is_finite = torch.isfinite(now)
        change = torch.where(is_finite, self.change(now, previous), torch.nan)
        return ChangeState(previous=torch.where(is_finite, now, previous), change=change)


def relative(now: Tensor, previous: Tensor, resolution: float) -> Tensor:
    """|now - previous| / previous; NaN where the predecessor is zero up to rounding, or not known."""
    is_known = previous >= resolution * now.clamp(min=1.0)
    return torch.where(is_known, (now - previous).abs() / previous, torch.nan)


def has_changed(change: Tensor, threshold: float) -> bool:
    """Whether a client asks for an averaging because its gradient has changed; NaN is no change."""
    return bool(change >= threshold)


def is_unknown(change: Tensor, sq_norm: Tensor) -> bool:
    """Whether there is nothing yet to compare the gradient with, of squared norm `sq_norm`; 0-d.

    One that is not finite, or zero up to rounding, has no change, either, and is no reason to average.
    """
    return bool(change.isnan() & sq_norm.isfinite() & (sq_norm >= RESOLUTION**2))

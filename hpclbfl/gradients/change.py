"""The relative gradient change, which tells critical phases: the paper's Eq. 8, and SelSync's smoothed one.

Eq. 8 compares the squared norm of the whole, aggregated and unscaled gradient (of the client's own gradient in local
training) with the step before:

    delta_i = | |G_i|^2 - |G_(i-1)|^2 | / |G_(i-1)|^2

It is asymmetric: 0.5 is reached at a ratio of norms of 1.22 or 0.71, 0.8 at 1.34 or 0.45.

It is not known (NaN) where |G_(i-1)| is zero up to rounding: the gradients of a mean loss are made of differences of
numbers of order 1, as a softmax less its labels, which float32 knows to RESOLUTION. A client of one label gets there,
and the quotient of what is left of such a gradient (1e27 and more) tells of no critical phase.

SelSync (S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023)
adds up the norms, not squared, of the layers, smooths the sum over a window of 25 steps, and takes the relative change
of the smoothed sum. The change is known from the 26th step on, when the window has filled and moved once. One step
moves the mean by about a twentieth of what it moves the sum: a sum that becomes ten times as large gives 0.41. The
authors' public code smooths the change over another 25 steps, which leaves 0.095 of that; this is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hpclbfl.core.state import checkpointed

Metric = Literal["squared_norm", "selsync"]

WINDOW = 25
"""SelSync: steps that are averaged."""
DECAY = 0.99
"""SelSync: weight of a step against the one after it, 1 - a with a = 0.01."""

RESOLUTION = torch.finfo(torch.float32).eps
"""A norm below it, or below this part of the next one, is zero up to rounding."""

_UNKNOWN = torch.tensor(float("nan"), dtype=torch.float64)


@checkpointed
@dataclass(frozen=True)
class ChangeState:
    """What the next change depends on."""

    previous: Tensor = _UNKNOWN
    """Squared norm of the last finite gradient, or SelSync's smoothed sum; NaN where there is none yet."""
    change: Tensor = _UNKNOWN
    """delta of the newest step; NaN where it is not known yet and where the gradient is not finite."""
    window: Tensor | None = None
    """SelSync: [WINDOW] newest sums of norms, the newest first, NaN where there is none yet."""


class ChangeMetric(Protocol):
    """A rule that turns norms into a relative change."""

    needs_layers: bool

    def init(self) -> ChangeState:
        """Before the first step."""

    def observe(self, grad_sq_norm: Tensor, layer_sq_norms: Tensor | None, state: ChangeState) -> ChangeState:
        """Take a step's norms; a gradient that is not finite does not become the predecessor."""


class SquaredNormChange:
    """Eq. 8; see the module."""

    needs_layers = False

    def init(self) -> ChangeState:
        """No predecessor."""
        return ChangeState()

    def observe(self, grad_sq_norm: Tensor, layer_sq_norms: Tensor | None, state: ChangeState) -> ChangeState:
        """Needs the squared norm alone, 0-d."""
        now = grad_sq_norm.double()
        previous = state.previous.to(now.device)
        is_finite = torch.isfinite(now)
        change = torch.where(is_finite, _relative(now, previous, RESOLUTION**2), torch.nan)
        return ChangeState(previous=torch.where(is_finite, now, previous), change=change)


class SmoothedChange:
    """SelSync's; see the module."""

    needs_layers = True

    def init(self) -> ChangeState:
        """An empty window."""
        return ChangeState(window=torch.full((WINDOW,), torch.nan, dtype=torch.float64))

    def observe(self, grad_sq_norm: Tensor, layer_sq_norms: Tensor | None, state: ChangeState) -> ChangeState:
        """Needs the layers' squared norms, [L]."""
        if layer_sq_norms is None or state.window is None:
            raise ValueError("SelSync's change needs the layers' norms and a window")
        now = layer_sq_norms.double().sqrt().sum()
        is_finite = torch.isfinite(now)
        # A checkpoint's lie on the host.
        before, previous = state.window.to(now.device), state.previous.to(now.device)
        window = torch.cat([now.reshape(1), before[:-1]])
        # NaN until the window has filled.
        smoothed = _weighted_mean(window)
        return ChangeState(
            previous=torch.where(is_finite, smoothed, previous),
            change=torch.where(is_finite, _relative(smoothed, previous, RESOLUTION), torch.nan),
            window=torch.where(is_finite, window, before),
        )


METRICS: dict[str, ChangeMetric] = {"squared_norm": SquaredNormChange(), "selsync": SmoothedChange()}


def _relative(now: Tensor, previous: Tensor, resolution: float) -> Tensor:
    """NaN where the predecessor is zero up to rounding, or not known."""
    is_known = previous >= resolution * now.clamp(min=1.0)
    return torch.where(is_known, (now - previous).abs() / previous, torch.nan)


def _weighted_mean(window: Tensor) -> Tensor:
    weights = DECAY ** torch.arange(WINDOW, dtype=torch.float64, device=window.device)
    return (weights * window).sum() / weights.sum()


def has_changed(change: Tensor, threshold: float) -> bool:
    """Whether a client asks for an averaging because its gradient has changed; NaN is no change."""
    return bool(change >= threshold)


def is_unknown(change: Tensor, sq_norm: Tensor) -> bool:
    """Whether there is nothing yet to compare the gradient with, of squared norm `sq_norm`; 0-d.

    One that is not finite, or zero up to rounding, has no change, either, and is no reason to average.
    """
    return bool(change.isnan() & sq_norm.isfinite() & (sq_norm >= RESOLUTION**2))

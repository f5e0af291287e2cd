"""The relative gradient change, which tells critical phases: the paper's Eq. 8, and SelSync's smoothed one.

Eq. 8 compares the squared norm of the whole, aggregated and unscaled gradient (of the client's own gradient in local
training) with the step before:

    delta_i = | |G_i|^2 - |G_(i-1)|^2 | / |G_(i-1)|^2

It is asymmetric: 0.5 is reached at a ratio of norms of 1.22 or 0.71, 0.8 at 1.34 or 0.45.

It is not known (NaN) where |G_(i-1)| is zero up to rounding: the gradients of a mean loss are made of differences of
numbers of order 1, as a softmax less its labels, which float32 knows to RESOLUTION. A client of one label gets there,
and the quotient of what is left of such a gradient (1e27 and more) tells of no critical phase.

SelSync (S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023)
adds up the norms, not squared, of the layers, smooths the sum over a window, takes the relative change, and smooths
that as well. Its public code divides by zero until the window has filled; here a mean is taken over the values there
are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Metric = Literal["squared_norm", "selsync"]

WINDOW = 25
"""SelSync: steps that are averaged."""
DECAY = 0.99
"""SelSync: weight of a step against the one after it, 1 - a with a = 0.01."""

RESOLUTION = torch.finfo(torch.float32).eps
"""A norm below it, or below this part of the next one, is zero up to rounding."""

_UNKNOWN = torch.tensor(float("nan"), dtype=torch.float64)


@dataclass(frozen=True)
class ChangeState:
    """What the next change depends on."""

    previous: Tensor = _UNKNOWN
    """Squared norm of the last finite gradient, or SelSync's smoothed sum; NaN before the first one."""
    change: Tensor = _UNKNOWN
    """delta of the newest step; NaN in the first one and where the gradient is not finite."""
    windows: Tensor | None = None
    """SelSync: [2, WINDOW] newest sums of norms and newest changes, the newest first, NaN where there is none."""


class ChangeMetric(Protocol):
    """A rule that turns norms into a relative change."""

    needs_layers: bool

    def observe(self, grad_sq_norm: Tensor, layer_sq_norms: Tensor | None, state: ChangeState) -> ChangeState:
        """Take a step's norms; a gradient that is not finite does not become the predecessor."""


class SquaredNormChange:
    """Eq. 8; see the module."""

    needs_layers = False

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

    def observe(self, grad_sq_norm: Tensor, layer_sq_norms: Tensor | None, state: ChangeState) -> ChangeState:
        """Needs the layers' squared norms, [L]."""
        if layer_sq_norms is None:
            raise ValueError("SelSync's change needs the layers' norms")
        now = layer_sq_norms.double().sqrt().sum()
        is_finite = torch.isfinite(now)
        before = state.windows
        if before is None:
            before = now.new_full((2, WINDOW), torch.nan)
        # A checkpoint's lie on the host.
        before = before.to(now.device)
        previous = state.previous.to(now.device)
        sums = _push(before[0], now)
        smoothed = _weighted_mean(sums)
        relative = _relative(smoothed, previous, RESOLUTION)
        changes = torch.where(torch.isfinite(relative), _push(before[1], relative), before[1])
        return ChangeState(
            previous=torch.where(is_finite, smoothed, previous),
            change=torch.where(is_finite & relative.isfinite(), _weighted_mean(changes), torch.nan),
            windows=torch.where(is_finite, torch.stack([sums, changes]), before),
        )


METRICS: dict[str, ChangeMetric] = {"squared_norm": SquaredNormChange(), "selsync": SmoothedChange()}


def _relative(now: Tensor, previous: Tensor, resolution: float) -> Tensor:
    """NaN where the predecessor is zero up to rounding, or not known."""
    is_known = previous >= resolution * now.clamp(min=1.0)
    return torch.where(is_known, (now - previous).abs() / previous, torch.nan)


def _push(window: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value.reshape(1), window[:-1]])


def _weighted_mean(window: Tensor) -> Tensor:
    """Over what is known; NaN when nothing is."""
    weights = DECAY ** torch.arange(WINDOW, dtype=torch.float64, device=window.device)
    known = torch.isfinite(window)
    return (weights * window.where(known, 0.0)).sum() / (weights * known).sum()

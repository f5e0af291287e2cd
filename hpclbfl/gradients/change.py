"""The relative gradient change of the paper's Eq. 8, which tells critical phases.

    delta_i = | |G_i|^2 - |G_(i-1)|^2 | / |G_(i-1)|^2

on the squared norm of the whole, aggregated and unscaled gradient (of the client's own gradient in local training). It
is asymmetric: 0.5 is reached at a ratio of norms of 1.22 or 0.71, 0.8 at 1.34 or 0.45.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_UNKNOWN = torch.tensor(float("nan"), dtype=torch.float64)


@dataclass(frozen=True)
class ChangeState:
    """What the next change depends on."""

    previous: Tensor = _UNKNOWN
    """Squared norm of the last finite gradient; NaN before the first one."""
    change: Tensor = _UNKNOWN
    """delta of the newest step; NaN in the first one and where the gradient is not finite."""


def observe(grad_sq_norm: Tensor, state: ChangeState) -> ChangeState:
    """Take the squared norm of a step's gradient (0-d); one that is not finite does not become the predecessor."""
    now = grad_sq_norm.double()
    previous = state.previous.to(now.device)
    is_finite = torch.isfinite(now)
    change = torch.where(is_finite, (now - previous).abs() / previous, torch.full_like(now, torch.nan))
    return ChangeState(previous=torch.where(is_finite, now, previous), change=change)

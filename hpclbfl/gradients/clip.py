"""Clipping the gradient's norm, as a multiplier.

R. Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013. Taken from the norm that was
measured for Eq. 8 anyway: clipping a gradient before it is measured would hold the norm constant whenever the clip
binds, and the change at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpclbfl.gradients import Context


@dataclass(frozen=True)
class Clip:
    """min(1, max_norm / |G|); a `hpclbfl.gradients.GradientTransform` without state."""

    max_norm: float

    needs_layers = False
    is_identity = False

    def init(self) -> None:
        """Nothing to remember."""

    def update(self, grad_sq_norm: Tensor, state: None, ctx: Context) -> tuple[Tensor, None]:
        """The multiplier, float64 0-d; NaN for a gradient that is NaN."""
        norm = grad_sq_norm.double().sqrt()
        return torch.where(norm > self.max_norm, self.max_norm / norm, norm * 0 + 1), None

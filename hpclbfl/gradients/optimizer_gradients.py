"""The gradients that an optimizer holds: all of them, their norm, and whether they are whole and to scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpclbfl.gradients.apply import by_kind, rides_on_step
from hpclbfl.gradients.norm import SquaredNorm, squared_norm


class HorovodGradients:
    """Tells when the gradients of an hvd.DistributedOptimizer have been reduced.

    Its step() calls the hooks, then synchronize(), then the wrapped class's step(), which calls the hooks again. Inside
    skip_synchronize() both calls come after the user's own synchronize(), and the first one is the right one.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._synchronize = optimizer.synchronize
        self._is_marked = False
        self._is_second = False
        optimizer.synchronize = self._marking

    def _marking(self) -> None:
        self._is_marked = False
        self._synchronize()
        self._is_marked = True

    @property
    def are_reduced(self) -> bool:
        """Reduced, not used by a step yet, and no backward pass has begun to reduce others."""
        return self._is_marked and not self._optimizer._handles

    def take(self) -> bool:
        """Whether this call of the hook is the one, of the two in a step, that acts."""
        if not self._optimizer._requires_update:
            # One rank, or one outside of the process set: nothing is reduced or begun, and each second call will do.
            self._is_second = not self._is_second
            return self._is_second
        # synchronize() has been called, and step() will call it once more.
        is_reduced_again = self._optimizer._synchronized and self._optimizer._should_synchronize
        if not self.are_reduced or is_reduced_again:
            return False
        self._is_marked = False
        return True

    def detach(self) -> None:
        """Give back the optimizer's own synchronize()."""
        self._optimizer.synchronize = self._synchronize


def gradients_of(optimizer: Optimizer, whose: str) -> list[Tensor]:
    """All there are, complex ones as real views; `whose` names who takes them, in errors."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for gradient in gradients:
        if gradient.layout != torch.strided:
            shape = tuple(gradient.shape)
            raise RuntimeError(f"a {whose} takes dense gradients; one of shape {shape} is {gradient.layout}")
    return [torch.view_as_real(g) if g.is_complex() else g for g in gradients]


def loss_scale_of(optimizer: Optimizer) -> Tensor | None:
    """By how much the gradients that a fused optimizer steps on are too large."""
    if rides_on_step(optimizer) or getattr(optimizer, "_step_supports_amp_scaling", False):
        scale = getattr(optimizer, "grad_scale", None)
        return scale if isinstance(scale, Tensor) else None
    return None


def squared_norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """Of all of them, float64 0-d, on the first one's device."""
    parts = []
    for (device, dtype), group in by_kind(gradients).items():
        if dtype in (torch.float32, torch.float64):
            parts.append(squared_norm(group))
        else:
            # Squares overflow in half precision, and hold two digits in bfloat16.
            norm = SquaredNorm(torch.empty(0, device=device))
            for gradient in group:
                norm.add(gradient.float())
            parts.append(norm.take())
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()

"""The factor of a gradient on its way into the step: in the pass that a fused optimizer makes anyway, or before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_ABSENT = object()


class FactorOnStep:
    """The factor of one optimizer's steps.

    Args:
        optimizer: any of torch's.
        may_ride: False: a loss scaler uses the fused optimizer's own way itself.
    """

    def __init__(self, optimizer: Optimizer, may_ride: bool = True) -> None:
        self._optimizer, self._may_ride = optimizer, may_ride
        self._ridden: tuple[Tensor, Any] | None = None

    def apply(self, gradients: Sequence[Tensor], factor: Tensor, loss_scale: Tensor | None = None) -> None:
        """Let the next step multiply its gradients.

        Args:
            gradients: of the optimizer.
            factor: 0-d.
            loss_scale: by which a fused optimizer divides them in its step.
        """
        # Elsewhere than on a CPU the host does not know the factor, and does not wait for it.
        if factor.device.type == "cpu" and factor.item() == 1:
            return
        if self._may_ride and rides_on_step(self._optimizer) and all(g.dtype != torch.float64 for g in gradients):
            # It divides by grad_scale, which has to be float32: exact for powers of two, to rounding else.
            divisor = factor.reciprocal() if loss_scale is None else loss_scale / factor
            self._ridden = (divisor.float(), getattr(self._optimizer, "grad_scale", _ABSENT))
            self._optimizer.grad_scale = self._ridden[0]  # type: ignore[attr-defined]
            return
        for (device, dtype), group in by_kind(gradients).items():
            torch._foreach_mul_(group, factor.to(device, torch.promote_types(dtype, torch.float32)))

    def restore(self) -> None:
        """Leave the optimizer as it was; after the step, or where it has raised."""
        ridden, self._ridden = self._ridden, None
        if ridden is None or getattr(self._optimizer, "grad_scale", None) is not ridden[0]:
            return
        if ridden[1] is _ABSENT:
            del self._optimizer.grad_scale  # type: ignore[attr-defined]
        else:
            self._optimizer.grad_scale = ridden[1]  # type: ignore[attr-defined]


def rides_on_step(optimizer: Optimizer) -> bool:
    """Whether the optimizer multiplies gradients in the pass that it makes anyway: fused SGD does."""
    return isinstance(optimizer, torch.optim.SGD) and all(group.get("fused") for group in optimizer.param_groups)


def by_kind(gradients: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    """Groups of one device and type, as torch's foreach functions want them."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        kinds[gradient.device, gradient.dtype].append(gradient)
    return kinds

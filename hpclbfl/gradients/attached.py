"""What acts in each step of a torch optimizer of any script, on its reduced and unscaled gradients.

DistributedDataParallel    has reduced the gradients when step() is called.
hvd.DistributedOptimizer   reduces them inside step(), or in synchronize() before it; nothing is done until then.
torch.amp.GradScaler       has unscaled them, except for a fused optimizer, which it gives the loss scale instead.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpclbfl.gradients.apply import FactorOnStep
from hpclbfl.gradients.optimizer_gradients import HorovodGradients, gradients_of, squared_norm_of

NORMALISERS = frozenset({"adam", "adamw", "adamax", "nadam", "radam", "lamb", "lars"})
"""Optimizers, in lower case, that divide out a constant factor on the gradient, or nearly."""

_OWNER = "_hpclbfl_scaler"
Own = TypeVar("Own", bound="Attached")


class Attached:
    """Acts on the gradients in each step of the optimizer that it is attached to.

    Args:
        agree: makes a tensor of norms equal on all ranks, by what it returns or in place; None: they are.
    """

    normalised = ""
    """What a warning says of an optimizer that divides by the gradient's size."""

    def __init__(self, agree: Callable[[Tensor], Tensor | None] | None = None) -> None:
        self._agree = agree
        self._optimizer: Optimizer | None = None
        self._factor: FactorOnStep | None = None
        self._horovod: HorovodGradients | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self: Own, optimizer: Optimizer) -> Own:
        """Act in every step of this optimizer from now on; its hvd.DistributedOptimizer is made before.

        Returns:
            itself

        Raises:
            RuntimeError: it is attached already, or the optimizer has another one.
            ValueError: not an optimizer, or Horovod's Adasum, which reduces updates instead of gradients.
        """
        own = type(self).__name__
        if self._optimizer is not None:
            raise RuntimeError(f"this {own} is attached already: detach() it, or make one for each optimizer")
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"attach() takes a torch optimizer, not {type(optimizer).__name__}")
        if hasattr(optimizer, _OWNER):
            other = type(getattr(optimizer, _OWNER)).__name__
            raise RuntimeError(f"the optimizer has a {other} already: detach() that one first")
        if hasattr(optimizer, "_starting_models"):
            raise ValueError(f"Horovod's Adasum reduces updates, not gradients: a {own} finds none to measure")
        name = next((c.__name__ for c in type(optimizer).__mro__ if c.__name__.lower() in NORMALISERS), None)
        if name is not None:
            warnings.warn(f"{name} divides by the gradient's own size: {self.normalised}", stacklevel=2)
        self._optimizer, self._factor = optimizer, FactorOnStep(optimizer)
        setattr(optimizer, _OWNER, self)
        if hasattr(optimizer, "skip_synchronize"):
            self._horovod = HorovodGradients(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def detach(self) -> None:
        """Leave the optimizer as it was; the state stays."""
        if self._optimizer is None:
            return
        if self._factor is not None:
            self._factor.restore()
        for hook in self._hooks:
            hook.remove()
        if self._horovod is not None:
            self._horovod.detach()
        delattr(self._optimizer, _OWNER)
        self._optimizer, self._factor, self._horovod, self._hooks = None, None, None, []

    def _act(self, optimizer: Optimizer, gradients: list[Tensor], factor: FactorOnStep) -> None:
        """Take a step's gradients, which are whole; there is one at least."""
        raise NotImplementedError

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(value) for value in (*args[1:], kwargs.get("closure"))):
            raise RuntimeError(
                f"step(closure) computes the gradients after a {type(self).__name__} has to see them: "
                "call backward() first and step() without a closure"
            )
        if self._horovod is not None and not self._horovod.take():
            return
        if self._factor is None:
            return
        self._factor.restore()  # Left over where the step before has raised.
        gradients = gradients_of(optimizer, type(self).__name__)
        if gradients:
            self._act(optimizer, gradients, self._factor)
        else:
            self._miss()

    def _miss(self) -> None:
        """A step without gradients."""

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._factor is not None:
            self._factor.restore()

    def _sq_norms(self, gradients: Sequence[Tensor], needs_layers: bool) -> Tensor:
        """[1] of the whole, or [1 + L] with those of the parameters after it; float64, on the first one's device."""
        if needs_layers:
            layers = torch.stack([squared_norm_of([g]).to(gradients[0].device) for g in gradients])
            sq_norms = torch.cat([layers.sum(0, keepdim=True), layers])
        else:
            sq_norms = squared_norm_of(gradients).reshape(1)
        if self._agree is None:
            return sq_norms
        agreed = self._agree(sq_norms)
        return sq_norms if agreed is None else agreed.to(sq_norms)

    @classmethod
    def _check(cls, name: str, value: object, is_right: bool, expected: str) -> None:
        if not is_right:
            raise ValueError(f"{cls.__name__}: {name}={value!r}: expected {expected}")


def is_number(value: object) -> bool:
    """Whether it is a finite real number."""
    return not isinstance(value, (bool, complex)) and isinstance(value, Real) and math.isfinite(value)


def is_count(value: object, least: int) -> bool:
    """Whether it is a whole number of at least so many."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

"""Gradient transforms: multipliers of the gradient, decided from its squared norm.

A transform is two pure functions and an explicit state, which is checkpointed. Norms, changes and multipliers are 0-d
float64 tensors on the gradient's device, so that a GPU's host waits for none of them; on every rank they come from
reduced values and are therefore equal.

The order is fixed: undo loss scaling, measure, clip (from that norm), scale by X, step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

State = TypeVar("State")


@dataclass(frozen=True)
class Context:
    """What a transform may know besides the norm."""

    seed: int
    step: int
    client: int = -1
    """-1 while the model is shared."""
    layer_sq_norms: Tensor | None = None
    """[L] squared norm of each parameter's gradient, float64; where a transform's `needs_layers` asks for it."""


class GradientTransform(Protocol[State]):
    """A multiplier of the gradient; see the package."""

    @property
    def needs_layers(self) -> bool:
        """Whether it reads the norms of the layers."""

    @property
    def is_identity(self) -> bool:
        """Whether the multiplier is 1 in every step."""

    def init(self) -> State:
        """Before the first step."""

    def update(self, grad_sq_norm: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        """The multiplier of this step's gradient, whose squared norm is given, and the next state."""

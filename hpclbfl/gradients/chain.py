"""Several gradient transforms as one: their multipliers' product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hpclbfl.gradients import Context, GradientTransform


class Chain:
    """A `hpclbfl.gradients.GradientTransform`; all of its parts see the norm of the same, unscaled gradient.

    Args:
        transforms: at least one.
    """

    def __init__(self, transforms: Sequence[GradientTransform[Any]]) -> None:
        if not transforms:
            raise ValueError("a chain needs at least one transform")
        self.transforms = tuple(transforms)

    @property
    def needs_layers(self) -> bool:
        """Any part does."""
        return any(t.needs_layers for t in self.transforms)

    @property
    def is_identity(self) -> bool:
        """All parts are."""
        return all(t.is_identity for t in self.transforms)

    def init(self) -> tuple[Any, ...]:
        """One state for each part."""
        return tuple(t.init() for t in self.transforms)

    def update(self, grad_sq_norm: Tensor, state: tuple[Any, ...], ctx: Context) -> tuple[Tensor, tuple[Any, ...]]:
        """The product and the parts' next states."""
        product: Tensor | None = None
        states = []
        for transform, before in zip(self.transforms, state, strict=True):
            multiplier, after = transform.update(grad_sq_norm, before, ctx)
            product = multiplier if product is None else product * multiplier
            states.append(after)
        return product if product is not None else grad_sq_norm.new_ones(()), tuple(states)

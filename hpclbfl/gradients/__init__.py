"""What happens to a gradient between its reduction and the optimizer: it is measured, transformed, and stepped with.

A transform is a pure function of the gradient, of its own state and of what all ranks know, so that it does the same on
every rank, and its state is checkpointed. Norms, changes and factors are 0-d float64 tensors on the gradient's device:
a GPU's host waits for none of them.

The order is fixed: undo loss scaling, measure, transform (`gradients.chain`), step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout

State = TypeVar("State")
Metrics: TypeAlias = "dict[str, Tensor]"
"""0-d numbers for the log, by name: columns of its table `steps`, and others, which go to its table `metrics`."""


@dataclass(frozen=True)
class NoiseAverages:
    """Of the gradient noise scale, over steps; 0-d, float64."""

    tr_sigma: Tensor
    """Trace of the covariance of one sample's gradient."""
    b_simple: Tensor
    """Samples."""


@dataclass(frozen=True)
class Context:
    """What a transform may know besides the gradient; equal on all ranks."""

    seed: int
    step: int
    client: int = -1
    """-1 while the model is shared."""
    epoch: float = 0.0
    """Passes over the training set before this step."""
    lr: float = math.nan
    """Learning rate of this step."""
    noise: NoiseAverages | None = None
    """What is known of the gradient's noise up to this step; None: it is not measured."""
    epoch_after: float = math.nan
    """Passes over the training set after this step; NaN: not known."""
    agree: Callable[[Tensor], Tensor] | None = None
    """Makes a number equal on ranks whose arithmetic rounds differently; None: it is."""
    batch_size: int = 0
    """Samples of which this gradient is the mean: B, or b_c of a client that trains alone; 0: not known."""

    @property
    def ends_epoch(self) -> bool:
        """Whether this step completes a pass over the training set."""
        return math.floor(self.epoch_after) > math.floor(self.epoch) if math.isfinite(self.epoch_after) else False


class GradientTransform(Protocol[State]):
    """Turns one gradient into another: (gradient, state, context) to (gradient, state, metrics).

    While clients train models of their own, each has a state of its own; a shared model has one.
    """

    @property
    def needs_layers(self) -> bool:
        """Whether it reads `Gradient.layer_sq_norms`, which a shared gradient's ranks then agree on."""

    @property
    def is_identity(self) -> bool:
        """Whether it only measures."""

    # What it may have besides: `reads_values`, whether it reads the values of `Gradient.measured`, which are then kept
    # where a transform before it has changed the gradient.

    def init(self, layout: Layout | None) -> State:
        """Before the first step."""

    def update(self, gradient: Gradient, state: State, ctx: Context) -> tuple[Gradient, State, Metrics]:
        """Return the step's gradient and the next state; neither argument is changed in place."""

"""Transforms that learn from the clients' own gradients, in the steps in which they ask for them.

What such a transform has learnt is one for each rank and equal on all, whoever's gradient it then transforms, while its
state as a transform is a client's or the shared model's. It is checkpointed in the part that all clients share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hpclbfl.gradients import Context, Metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hpclbfl.core.state import Stateful
    from hpclbfl.gradients.gradient import Gradient, Layout

OwnGradient = Sequence["Tensor | None"]
"""[L] a client's mean gradient by parameter, in the order of the net; None: the backward pass did not reach it."""


@dataclass(frozen=True)
class ClientGradients:
    """The gradients of one step, all taken at the same weights."""

    own: Mapping[int, OwnGradient]
    """Of this rank's clients that have samples, by number."""
    counts: NDArray[np.int64]
    """[C] b_c, samples of every client; 0 for one without."""
    mean: Gradient
    """G, the sum over clients of b_c / B times their gradients; unscaled, with its squared norm."""
    sum_: Callable[[Tensor], None]
    """Sums a contiguous tensor over the ranks, in place; every rank makes the same calls."""
    rank: int = 0

    def from_first(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on all ranks bit for bit."""
        tensor = tensor.new_zeros(tensor.shape) if self.rank else tensor.contiguous()
        self.sum_(tensor)
        return tensor


@runtime_checkable
class Learner(Protocol):
    """What a `hpclbfl.gradients.GradientTransform` has besides where it learns."""

    memory: Stateful
    """What it has learnt; its state's keys are used by nothing else."""
    asks_by_state: bool
    """Whether ranks may differ in what they ask for while clients train alone, so that they have to vote."""

    def begin(self, layout: Layout, num_clients: int, seed: int) -> None:
        """Before the first step, and any number of times."""

    def wants(self, step: int, states: Sequence[Any]) -> bool:
        """Whether it asks for the clients' own gradients of the coming step.

        Args:
            step: from 0.
            states: its state of each client of this rank, or of the shared model.
        """

    def learn(self, found: ClientGradients, states: Sequence[Any], ctx: Context) -> Metrics:
        """Take a step's gradients, before they are transformed; a collective. Returns numbers for the log.

        Args:
            states: as for `wants`.
        """

"""What a kind of teacher is: it takes the clients' gradients of a training step, learns, and transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from hpclbfl.gradients import Context, Metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
    from hpclbfl.gradients.learning import ClientGradients

State = TypeVar("State")
Lesson = TypeVar("Lesson")

ENERGY = "teacher energy"
"""Of a training: share of the residuals' squared norm that their encoding keeps."""
ERROR = "teacher error"
"""Squared error of the prediction on gradients that have not been learnt from, relative to their squared norm."""
NORM_RATIO = "teacher norm ratio"
"""Root mean square of the predictions, relative to that of what they predict."""
COSINE = "teacher cosine"
"""Between a prediction and what it predicts."""
VARIANCE = "teacher variance"
"""Of the teacher's noise along the leading directions of fresh residuals, relative to other residuals' variance."""
SECONDS = "teacher seconds"
"""That a training step took besides what a step takes anyway."""
NOISE = "teacher noise"
"""|A(G) - G|^2 / |G|^2 of a step."""


class Kind(Protocol[State, Lesson]):
    """A kind of teacher. Its state is marked `checkpointed`, has tensors of fixed shapes and is equal on all ranks.

    `change` is Eq. 8's of the gradient, 0-d; NaN where it is not known.
    """

    def init(self, layout: Layout, num_clients: int) -> State:
        """Before it has learnt anything."""

    def collect(self, found: ClientGradients, ctx: Context, change: Tensor) -> Lesson | None:
        """What is to be learnt from a step's gradients, equal on all ranks; a collective. None: nothing can be."""

    def test(self, lesson: Lesson, state: State, ctx: Context) -> Metrics:
        """Compare the teacher as it is with gradients that it has not learnt from; empty where it is untrained."""

    def learn(
        self, lesson: Lesson, state: State, begins: bool, found: ClientGradients, ctx: Context
    ) -> tuple[State, Metrics]:
        """Learn a lesson; the tensors of `state` may be written to.

        Args:
            begins: whether a training begins with it, and what was learnt before is forgotten.
        """

    def has_drifted(self, error: float, reference: float) -> bool:
        """Whether ERROR is so much worse than soon after the training that another one is due."""

    def apply(self, gradient: Gradient, state: State, ctx: Context, change: Tensor) -> tuple[Gradient, Metrics]:
        """A(G); the gradient as it came where nothing has been learnt yet."""


def taking_part(counts: NDArray[np.int64], most: int, key: tuple[int, ...]) -> list[int]:
    """Clients from which a training step learns: those with samples, not all of them; drawn where there are too many.

    Args:
        counts: [C] b_c.
        most: how many at most.
        key: of the draw.
    """
    import numpy as np

    usable = np.flatnonzero((counts > 0) & (counts < counts.sum()))
    if len(usable) > most:
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(key[0], spawn_key=key[1:])))
        usable = np.sort(draw.choice(usable, most, replace=False))
    return [int(client) for client in usable]

"""SelSync: local steps until some client's gradient changes, then an averaging of all.

S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023. Each client
watches the relative change of its own gradient (`hpclbfl.gradients.change`); where one reaches the threshold, all
average their parameters after that step. As in the authors' code, a change that is not known yet asks for an averaging,
too: under `change: selsync` each of the first 25 steps ends with one, under `squared_norm` the first one.
"""

from __future__ import annotations

from torch import Tensor

from hpclbfl.gradients.change import RESOLUTION


class SelectiveSynchronisation:
    """See `hpclbfl.algorithms.Synchroniser`.

    Args:
        threshold: of the change of a client's gradient.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def shared(self, step: int) -> bool:
        """Never: every client has its own model."""
        return False

    def needs_vote(self, step: int) -> bool:
        """Always: any client may ask for an averaging."""
        return True

    def averages(self, step: int, fired: bool) -> bool:
        """Where a client asked."""
        return fired

    def why_never(self, step: int, num_averagings: int) -> str:
        """No change was large enough; averagings while none was known do not count."""
        if num_averagings >= step:
            return ""
        first = "step" if num_averagings == 1 else f"{num_averagings} steps"
        after = f" after the first {first}" if num_averagings else ""
        return f"no change of a client's gradient reached sync.threshold {self.threshold:g}{after}"


def has_changed(change: Tensor, threshold: float) -> bool:
    """Whether a client asks for an averaging because its gradient has changed; NaN is no change."""
    return bool(change >= threshold)


def is_unknown(change: Tensor, sq_norm: Tensor) -> bool:
    """Whether there is nothing yet to compare the gradient with, of squared norm `sq_norm`; 0-d.

    One that is not finite, or zero up to rounding, has no change, either, and is no reason to average.
    """
    return bool(change.isnan() & sq_norm.isfinite() & (sq_norm >= RESOLUTION**2))

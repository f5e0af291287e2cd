"""Batch sizes in proportion to speed, from a plan that `hpclbfl plan` has measured."""

from __future__ import annotations

from collections.abc import Sequence

from hpclbfl.batching import FloatArray, Observation, Plan
from hpclbfl.batching.share import balance


class Proportional:
    """See `hpclbfl.batching.BatchPolicy`.

    Args:
        fixed_s, per_sample_s: [R] time model of every rank: t = fixed_s + per_sample_s * batch.
        low, high: [R] bounds, samples.
        warnings: why the time model may be wrong.
    """

    needs_seconds = False

    def __init__(
        self,
        fixed_s: FloatArray,
        per_sample_s: FloatArray,
        low: Sequence[int],
        high: Sequence[int],
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.warnings = warnings
        self._fixed_s, self._per_sample_s, self._low, self._high = fixed_s, per_sample_s, low, high

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, None]:
        """The split of the job's global batch."""
        split = balance(sum(sizes), self._fixed_s, self._per_sample_s, self._low, self._high)
        return Plan(split, "measured speeds"), None

    def update(self, seen: Observation, state: None) -> tuple[None, None]:
        """Never another one."""
        return None, None

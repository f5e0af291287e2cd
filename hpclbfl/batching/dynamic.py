"""A controller that adapts batch sizes to measured compute times, following OmniLearn.

S. Tyagi, P. Sharma, "OmniLearn: A Framework for Distributed Deep Learning over Heterogeneous Clusters", IEEE TPDS 2025,
gives each worker a batch in proportion to its speed. Here each rank's time is modelled as a line in its batch size,
fitted to two plans, so that the fixed part of a step is not mistaken for slowness. A new plan must gain more than
`min_gain` and more than the noise of the measurements. Steps right after a change, when memory is reallocated, are
ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from hpclbfl.batching import FloatArray, Observation, Plan
from hpclbfl.batching.bounds import bounds_of_ranks, check_bounds
from hpclbfl.batching.share import balance
from hpclbfl.config.components import POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections.base import Fraction, PositiveInt
from hpclbfl.config.sections.batching import BoundedConfig
from hpclbfl.core.state import checkpointed

WINDOW = 5
"""Default number of steps between two decisions."""
SETTLING_STEPS = 2
"""Steps after a change that are ignored."""
BLOCKS = 4
"""Largest number of windows without a change that are evaluated together."""
JUMP = 0.25
"""Relative change of a rank's time between windows after which older windows are discarded."""
_MEDIAN_ERROR = 1.2533
"""Ratio of the standard errors of the median and the mean of normal values."""


class DynamicConfig(BoundedConfig):
    """Batches follow the ranks' speed as it changes."""

    window: PositiveInt | None = None
    """Steps between two decisions; null: 5."""
    min_gain: Fraction | None = None
    """Smallest relative gain of the predicted step time for which batches change; null: 0.03."""

    @property
    def num_timed_steps(self) -> int:
        """See `BatchingConfig`."""
        return self.window or WINDOW


@checkpointed
@dataclass(frozen=True)
class ControllerState:
    """The input of the next decision."""

    sizes: tuple[int, ...]
    times: tuple[tuple[float, ...], ...] = ()
    """Seconds of each rank, for each evaluated step under this plan."""
    history: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()
    """Sizes and median seconds of earlier plans at the present speed of the devices; the newest last."""
    settling: int = SETTLING_STEPS
    """Steps that are still to be ignored."""
    num_changes: int = 0


class Dynamic:
    """See `hpclbfl.batching.BatchPolicy`.

    Args:
        low: [R] lower bounds, samples.
        high: [R] upper bounds, samples.
        window: steps between two decisions.
        min_gain: smallest relative gain of the predicted step time.
        max_changes: number of changes after which the plan stays; None: unlimited.
    """

    needs_seconds = True
    warnings: tuple[str, ...] = ()

    def __init__(
        self, low: Sequence[int], high: Sequence[int], window: int, min_gain: float, max_changes: int | None = None
    ) -> None:
        self._low, self._high, self._window = low, high, window
        self._min_gain, self._max_changes = min_gain, max_changes

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, ControllerState]:
        """The job's sizes, if they are within bounds, else an even split within bounds."""
        ones = np.ones(len(sizes))
        if any(not lo <= n <= hi for n, lo, hi in zip(sizes, self._low, self._high, strict=True)):
            sizes = balance(sum(sizes), np.zeros(len(sizes)), ones, self._low, self._high)
        return Plan(sizes, "start"), ControllerState(sizes)

    def update(self, seen: Observation, state: ControllerState) -> tuple[Plan | None, ControllerState]:
        """Decide at the end of each window."""
        is_over = self._max_changes is not None and state.num_changes >= self._max_changes
        if is_over or seen.sizes != state.sizes or not np.isfinite(seen.seconds).all():
            return None, state
        if state.settling:
            return None, replace(state, settling=state.settling - 1)
        times = (*state.times, tuple(float(s) for s in seen.seconds))
        state = replace(state, times=times)
        if len(times) % self._window:
            return None, state
        return self._decide(self._without_outdated(state))

    def _without_outdated(self, state: ControllerState) -> ControllerState:
        """The state without measurements from before a change of speed."""
        window = self._window
        if len(state.times) > window:
            before, now = _medians(state.times[-2 * window : -window]), _medians(state.times[-window:])
            if (np.abs(now - before) > JUMP * np.minimum(before, now)).any():
                return replace(state, times=state.times[-window:], history=())
        return replace(state, times=state.times[-BLOCKS * window :])

    def _decide(self, state: ControllerState) -> tuple[Plan | None, ControllerState]:
        now = _medians(state.times)
        if now.max() - now.min() <= self._min_gain * now.max():
            # Under any other plan some rank has at least its present batch, so no step beats the fastest rank's time.
            return None, state
        fixed_s, per_sample_s = _lines(state, now)
        sizes = balance(sum(state.sizes), fixed_s, per_sample_s, self._low, self._high)
        predicted = float((fixed_s + per_sample_s * np.array(sizes)).max())
        gain = float(now.max()) - predicted
        times = np.array(state.times)
        # Standard error of the difference between two ranks' medians.
        error = float(np.sqrt(2) * _MEDIAN_ERROR * times.std(axis=0, ddof=1).max() / np.sqrt(len(times)))
        if sizes == state.sizes or gain <= self._min_gain * now.max() or gain <= 2 * error:
            return None, state
        history = (*state.history, (state.sizes, tuple(float(t) for t in now)))[-2:]
        reason = f"step {1e3 * now.max():.0f} -> {1e3 * predicted:.0f} ms predicted"
        return Plan(sizes, reason), ControllerState(sizes, history=history, num_changes=state.num_changes + 1)


def _medians(times: Sequence[Sequence[float]]) -> FloatArray:
    """[R] median over steps; for so few numbers this is several times as fast as NumPy's median."""
    return np.array([median(rank) for rank in zip(*times, strict=True)])


def _lines(state: ControllerState, now: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[R] fixed seconds and seconds per sample: a line through the present and an earlier plan, or the origin."""
    sizes = np.array(state.sizes, dtype=np.float64)
    per_sample_s = now / sizes
    for rank in range(len(sizes)):
        others = [(b[rank], t[rank]) for b, t in state.history if b[rank] != sizes[rank]]
        if others:
            batch, seconds = max(others, key=lambda point: abs(point[0] - sizes[rank]))
            slope = (now[rank] - seconds) / (sizes[rank] - batch)
            # Noise at two close points could give any slope; fixed parts above 80 % do not occur in practice.
            per_sample_s[rank] = np.clip(slope, 0.2 * per_sample_s[rank], per_sample_s[rank])
    # Rounding may leave small negative values.
    return np.maximum(now - per_sample_s * sizes, 0.0), per_sample_s


@POLICIES.register("dynamic", DynamicConfig)
def make_dynamic(
    config: DynamicConfig, job: JobConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> Dynamic:
    """See the module."""
    low, high = bounds_of_ranks(config, num_ranks, sizes, capacity)
    check_bounds(low, high, sizes)
    return Dynamic(low, high, config.window or WINDOW, config.min_gain if config.min_gain is not None else 0.03)

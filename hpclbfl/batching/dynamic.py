"""A controller of batch sizes on measured compute times, in the manner of OmniLearn.

S. Tyagi, P. Sharma, "OmniLearn: A Framework for Distributed Deep Learning over Heterogeneous Clusters", IEEE TPDS 2025,
gives each worker a batch in proportion to its speed. Here each rank's time is a straight line in its batch, which two
plans suffice to know, so that the fixed part of a step is not taken for slowness. A new plan must gain more than a few
per cent and more than the timers' noise. Steps right after a change, when memory is laid out anew, are not looked at.
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
"""Steps between two decisions, unless the job says otherwise."""
SETTLING_STEPS = 2
"""Steps after a change that are not looked at."""
BLOCKS = 4
"""Windows without a change that are looked at together."""
JUMP = 0.25
"""Relative change of a rank's time from one window to the next that makes the older ones worthless."""
_MEDIAN_ERROR = 1.2533
"""Standard error of a median of normal values over that of their mean."""


class DynamicConfig(BoundedConfig):
    """Batches follow the ranks' speed as it changes."""

    window: PositiveInt | None = None
    """Steps between two decisions; null: 5."""
    min_gain: Fraction | None = None
    """Least gain of the predicted step for which batches change; null: 0.03."""

    @property
    def num_told(self) -> int:
        """See `BatchingConfig`."""
        return self.window or WINDOW


@checkpointed
@dataclass(frozen=True)
class ControllerState:
    """What the next plan depends on."""

    sizes: tuple[int, ...]
    times: tuple[tuple[float, ...], ...] = ()
    """Seconds of each rank in the steps under this plan that count."""
    history: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()
    """Earlier plans' sizes and median seconds, while devices were as fast as now; the newest last."""
    settling: int = SETTLING_STEPS
    num_changes: int = 0


class Dynamic:
    """See `hpclbfl.batching.BatchPolicy`.

    Args:
        low, high: [R] bounds, samples.
        window: steps between two decisions.
        min_gain: of the predicted step, relative.
        max_changes: None: as many as it takes; a warm-up ends after so many.
    """

    needs_seconds = True
    warnings: tuple[str, ...] = ()

    def __init__(
        self, low: Sequence[int], high: Sequence[int], window: int, min_gain: float, max_changes: int | None = None
    ) -> None:
        self._low, self._high, self._window = low, high, window
        self._min_gain, self._max_changes = min_gain, max_changes

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, ControllerState]:
        """The job's sizes, within bounds."""
        ones = np.ones(len(sizes))
        if any(not lo <= n <= hi for n, lo, hi in zip(sizes, self._low, self._high, strict=True)):
            sizes = balance(sum(sizes), np.zeros(len(sizes)), ones, self._low, self._high)
        return Plan(sizes, "start"), ControllerState(sizes)

    def update(self, seen: Observation, state: ControllerState) -> tuple[Plan | None, ControllerState]:
        """Decide at the end of every window."""
        is_over = self._max_changes is not None and state.num_changes >= self._max_changes
        if is_over or seen.sizes != state.sizes or not np.isfinite(seen.seconds).all():
            return None, state
        if state.settling:
            return None, replace(state, settling=state.settling - 1)
        times = (*state.times, tuple(float(s) for s in seen.seconds))
        state = replace(state, times=times)
        if len(times) % self._window:
            return None, state
        state = self._forget_what_no_longer_holds(state)
        return self._decide(state)

    def _forget_what_no_longer_holds(self, state: ControllerState) -> ControllerState:
        window = self._window
        if len(state.times) > window:
            before, now = _medians(state.times[-2 * window : -window]), _medians(state.times[-window:])
            if (np.abs(now - before) > JUMP * np.minimum(before, now)).any():
                return replace(state, times=state.times[-self._window :], history=())
        return replace(state, times=state.times[-BLOCKS * self._window :])

    def _decide(self, state: ControllerState) -> tuple[Plan | None, ControllerState]:
        now = _medians(state.times)
        if now.max() - now.min() <= self._min_gain * now.max():
            # Under any plan some rank has as much to do as now, so no step is faster than the fastest rank is now.
            return None, state
        fixed_s, per_sample_s = _lines(state, now)
        sizes = balance(sum(state.sizes), fixed_s, per_sample_s, self._low, self._high)
        predicted = float((fixed_s + per_sample_s * np.array(sizes)).max())
        gain = float(now.max()) - predicted
        times = np.array(state.times)
        # Of the difference of two ranks' medians.
        error = float(np.sqrt(2) * _MEDIAN_ERROR * times.std(axis=0, ddof=1).max() / np.sqrt(len(times)))
        if sizes == state.sizes or gain <= self._min_gain * now.max() or gain <= 2 * error:
            return None, state
        history = (*state.history, (state.sizes, tuple(float(t) for t in now)))[-2:]
        reason = f"step {1e3 * now.max():.0f} -> {1e3 * predicted:.0f} ms predicted"
        return Plan(sizes, reason), ControllerState(sizes, history=history, num_changes=state.num_changes + 1)


def _medians(times: Sequence[Sequence[float]]) -> FloatArray:
    """[R] median over steps; for so few numbers several times as fast as NumPy's."""
    return np.array([median(rank) for rank in zip(*times, strict=True)])


def _lines(state: ControllerState, now: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[R] fixed seconds and seconds per sample; through what is measured now, and through the origin at first."""
    sizes = np.array(state.sizes, dtype=np.float64)
    per_sample_s = now / sizes
    for rank in range(len(sizes)):
        others = [(b[rank], t[rank]) for b, t in state.history if b[rank] != sizes[rank]]
        if others:
            batch, seconds = max(others, key=lambda point: abs(point[0] - sizes[rank]))
            slope = (now[rank] - seconds) / (sizes[rank] - batch)
            # Noise on two near points may tell any slope; a fixed part of four fifths is more than is seen.
            per_sample_s[rank] = np.clip(slope, 0.2 * per_sample_s[rank], per_sample_s[rank])
    # What rounding leaves below nothing is none.
    return np.maximum(now - per_sample_s * sizes, 0.0), per_sample_s


@POLICIES.register("dynamic", DynamicConfig)
def make_dynamic(
    config: DynamicConfig, job: JobConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> Dynamic:
    """See the module."""
    low, high = bounds_of_ranks(config, num_ranks, sizes, capacity)
    check_bounds(low, high, sizes)
    return Dynamic(low, high, config.window or WINDOW, config.min_gain if config.min_gain is not None else 0.03)

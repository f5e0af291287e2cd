"""Splitting a global batch among ranks of different speed so that the step time is minimal."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from hpclbfl.batching import FloatArray


def balance(
    total: int, fixed_s: FloatArray, per_sample_s: FloatArray, low: Sequence[int], high: Sequence[int]
) -> tuple[int, ...]:
    """Sizes that sum to `total`, within bounds, and minimise max_r (fixed_s[r] + per_sample_s[r] * size[r]).

    The result is deterministic: each sample goes to the rank that would finish it first, in a tie to the lowest rank.

    Args:
        total: B, samples.
        fixed_s: [R] part of the step time that does not depend on the batch, s.
        per_sample_s: [R] time per sample, s; above 0.
        low: [R] lower bounds, samples; their sum is at most `total`.
        high: [R] upper bounds, samples; their sum is at least `total`.

    Raises:
        ValueError: no split satisfies the bounds.
    """
    if not sum(low) <= total <= sum(high) or any(lo > hi for lo, hi in zip(low, high, strict=True)):
        raise ValueError(f"a batch of {total} cannot be split within {list(low)} to {list(high)}")
    # Rounding down the continuous solution leaves few samples for the greedy assignment below, which is exact.
    level = _level(total, fixed_s, per_sample_s, low, high)
    sizes = [int(n) for n in np.clip(np.floor((level - fixed_s) / per_sample_s), low, high)]
    rest = total - sum(sizes)
    if rest < 0:
        sizes, rest = list(low), total - sum(low)
    queue = [(fixed_s[r] + per_sample_s[r] * (size + 1), r) for r, size in enumerate(sizes) if size < high[r]]
    heapq.heapify(queue)
    for _ in range(rest):
        _, r = heapq.heappop(queue)
        sizes[r] += 1
        if sizes[r] < high[r]:
            heapq.heappush(queue, (fixed_s[r] + per_sample_s[r] * (sizes[r] + 1), r))
    return tuple(sizes)


def _level(total: int, fixed_s: FloatArray, per_sample_s: FloatArray, low: Sequence[int], high: Sequence[int]) -> float:
    """The time at which the ranks would have processed `total` samples together, with fractional samples.

    The number of processed samples is piecewise linear in time: each rank starts at its lower bound and stops at its
    upper bound.
    """
    begins, ends = (fixed_s + per_sample_s * np.asarray(bound, dtype=np.float64) for bound in (low, high))
    times = np.concatenate([begins, ends])
    # A stable sort gives the same plan for equal times on all machines.
    order = np.argsort(times, kind="stable")
    times, rates = times[order], np.cumsum(np.concatenate([1 / per_sample_s, -1 / per_sample_s])[order])
    done = sum(low) + np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(times))])
    last = int(np.searchsorted(done, total, side="right")) - 1
    left = total - float(done[last])
    return float(times[last]) + (left / float(rates[last]) if left > 0 and rates[last] > 0 else 0.0)


def even(total: int, parts: int) -> tuple[int, ...]:
    """Sizes that differ by at most 1; the first ones are larger."""
    quotient, rest = divmod(total, parts)
    return tuple(quotient + (k < rest) for k in range(parts))

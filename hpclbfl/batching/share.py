"""Splits a global batch among ranks of unlike speed so that the slowest is as fast as can be."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from hpclbfl.batching import FloatArray


def balance(
    total: int, fixed_s: FloatArray, per_sample_s: FloatArray, low: Sequence[int], high: Sequence[int]
) -> tuple[int, ...]:
    """Sizes that sum to `total`, within bounds, with the least max_r (fixed_s[r] + per_sample_s[r] * size[r]).

    Among equally good splits the same one comes out everywhere: samples go to the rank that is done with one more the
    earliest, and among equals to the first.

    Args:
        total: B, samples.
        fixed_s: [R] time of a step that does not depend on its batch, s.
        per_sample_s: [R] time of each sample, s; above 0.
        low, high: [R] bounds, samples; their sums enclose `total`.

    Raises:
        ValueError: the bounds leave no way to split the batch.
    """
    if not sum(low) <= total <= sum(high) or any(lo > hi for lo, hi in zip(low, high, strict=True)):
        raise ValueError(f"a batch of {total} cannot be split within {list(low)} to {list(high)}")
    # The greedy filling below is exact; from here it has few samples left to place.
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
    """The time at which the ranks, left to run, have done `total` samples, counting parts of samples.

    What they have done grows in straight pieces: each rank begins at its lower bound and stops at its upper one.
    """
    begins, ends = (fixed_s + per_sample_s * np.asarray(bound, dtype=np.float64) for bound in (low, high))
    times = np.concatenate([begins, ends])
    # Stable: equal times must give one plan on machines whose sorts differ.
    order = np.argsort(times, kind="stable")
    times, rates = times[order], np.cumsum(np.concatenate([1 / per_sample_s, -1 / per_sample_s])[order])
    done = sum(low) + np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(times))])
    last = int(np.searchsorted(done, total, side="right")) - 1
    left = total - float(done[last])
    return float(times[last]) + (left / float(rates[last]) if left > 0 and rates[last] > 0 else 0.0)


def even(total: int, parts: int) -> tuple[int, ...]:
    """As equal as can be; the first ones get the rest."""
    quotient, rest = divmod(total, parts)
    return tuple(quotient + (k < rest) for k in range(parts))

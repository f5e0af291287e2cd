from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclbfl.batching.local_steps import steps_by_speed, takes_part
from hpclbfl.batching.share import balance, even

times = st.floats(min_value=1e-4, max_value=10.0)


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray, list[int], list[int]]:
    ranks = draw(st.integers(1, 6))
    low = draw(st.lists(st.integers(0, 8), min_size=ranks, max_size=ranks))
    high = [lo + draw(st.integers(0, 300)) for lo in low]
    total = draw(st.integers(sum(low), sum(high)))
    fixed = np.array(draw(st.lists(st.floats(0, 5.0), min_size=ranks, max_size=ranks)))
    per_sample = np.array(draw(st.lists(times, min_size=ranks, max_size=ranks)))
    return total, fixed, per_sample, low, high


@given(splits())
@settings(deadline=None)
def test_batch_and_bounds_are_kept(split: tuple[int, np.ndarray, np.ndarray, list[int], list[int]]) -> None:
    total, _, _, low, high = split
    sizes = balance(*split)
    assert sum(sizes) == total
    assert all(lo <= n <= hi for n, lo, hi in zip(sizes, low, high, strict=True))
    assert balance(*split) == sizes


@given(
    st.integers(0, 9),
    st.lists(st.tuples(st.floats(0, 2.0), times), min_size=2, max_size=3),
)
@settings(deadline=None)
def test_no_split_is_faster(total: int, ranks: list[tuple[float, float]]) -> None:
    fixed, per_sample = (np.array(column) for column in zip(*ranks, strict=True))
    bounds = [0] * len(ranks), [total] * len(ranks)

    def slowest(sizes: tuple[int, ...]) -> float:
        # A rank without samples does not compute.
        return max((f + p * n for f, p, n in zip(fixed, per_sample, sizes, strict=True)), default=0.0)

    every = (s for s in itertools.product(range(total + 1), repeat=len(ranks)) if sum(s) == total)
    assert slowest(balance(total, fixed, per_sample, *bounds)) <= min(map(slowest, every)) * (1 + 1e-9)


@given(st.lists(times, min_size=2, max_size=6, unique=True), st.integers(1, 2000))
@settings(deadline=None)
def test_a_faster_rank_never_gets_less(per_sample: list[float], total: int) -> None:
    ranks = len(per_sample)
    sizes = balance(total, np.zeros(ranks), np.array(per_sample), [0] * ranks, [total] * ranks)
    assert (np.diff(np.array(sizes)[np.argsort(per_sample)]) <= 0).all()


def test_by_hand() -> None:
    zeros, slow = np.zeros(2), np.array([1.0, 3.0])
    assert balance(256, zeros, slow, [1, 1], [256, 256]) == (192, 64)
    # 40 + n against 3 n': 6 and 14, both at 46 and 42.
    assert balance(20, np.array([40.0, 0.0]), slow, [1, 1], [20, 20]) == (5, 15)
    assert balance(256, zeros, slow, [1, 1], [128, 256]) == (128, 128)
    assert even(11, 4) == (3, 3, 3, 2)
    with pytest.raises(ValueError, match="cannot be split"):
        balance(10, zeros, slow, [1, 1], [4, 4])


def test_local_steps_follow_speed() -> None:
    steps = steps_by_speed(np.array([0.1, 0.1, 0.2, 0.45]), 10)
    assert steps.tolist() == [10, 10, 5, 2]
    taken = np.array([takes_part(place, steps, 10) for place in range(10)])
    assert taken.sum(0).tolist() == [10, 10, 5, 2]
    # Evenly spread, and all clients compute the last step, so that they average together.
    assert taken[9].all()
    assert steps_by_speed(np.array([1e-6, 1.0]), 10).tolist() == [10, 1]

from __future__ import annotations

import numpy as np
import pytest

from hpclbfl.bench.statistics import Ratio, describe, paired_ratio, spread


def test_spread_by_hand() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2.0, 3.0, 4.0)


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    found = paired_ratio([2.0, 9.0, 40.0], [1.0, 3.0, 10.0])
    assert found.value == 3.0  # of 2, 3 and 4; the ratio of the medians would be 3, too, that of the means 3.6
    assert found.low == 2.0 and found.high == 4.0
    assert found.num_rounds == 3
    swapped = paired_ratio([1.0, 3.0, 10.0], [2.0, 9.0, 40.0])
    assert swapped.value == pytest.approx(found.inverse.value)
    assert (swapped.low, swapped.high) == pytest.approx((found.inverse.low, found.inverse.high))


def test_a_drift_that_both_sides_share_leaves_the_interval_narrow() -> None:
    drift = np.linspace(1.0, 3.0, 9)
    found = paired_ratio((1.5 * drift).tolist(), drift.tolist())
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_covers_the_true_ratio() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        drift = rng.lognormal(0.0, 0.3, 9)
        theirs, ours = (drift * rng.lognormal(0.0, 0.05, 9) for _ in range(2))
        found = paired_ratio((1.25 * theirs).tolist(), ours.tolist())
        covered += found.low <= 1.25 <= found.high
        assert found.high / found.low < 1.4
    # 95 % by design; a percentile interval of nine rounds comes close.
    assert 180 <= covered <= 200


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 and 0"):
        paired_ratio([], [])


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(2.9, 2.7, 3.1, 9), "2.9x faster (2.7 to 3.1)"),
        (Ratio(0.5, 0.4, 0.8, 9), "2x slower (1.25 to 2.5)"),
        (Ratio(1.02, 0.98, 1.04, 9), "1.02x faster (0.98 to 1.04), not significant"),
        (Ratio(944.4, 931.2, 957.0, 9), "944x faster (931 to 957)"),
        (Ratio(1.5, 1.5, 1.5, 1), "1.5x faster (one round, no interval)"),
    ],
)
def test_words(ratio: Ratio, text: str) -> None:
    assert describe(ratio) == text
    assert describe(Ratio(0.8, 0.7, 0.9, 9), "less", "more") == "1.25x more (1.11 to 1.43)"

"""Intervals and comparisons, against numbers worked out by hand and against what intervals promise."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats as reference

from hpclbfl.analysis.stats import (
    MIN_SEEDS,
    NO_DIFFERENCE,
    TOO_FEW,
    bootstrap_interval,
    compare,
    effect_size,
    over_seeds,
)


def stretch(n):
    return math.sqrt(n / (n - 1)) * reference.t.ppf(0.975, n - 1) / reference.norm.ppf(0.975)


def test_interval_of_three_by_hand():
    # All 27 resamples of three values: the smallest mean comes once (3.7 % > 2.5 %), so the quantiles are the extremes.
    low, high = bootstrap_interval([1.0, 2.0, 6.0])
    assert low == pytest.approx(3 - stretch(3) * (3 - 1))
    assert high == pytest.approx(3 + stretch(3) * (6 - 3))


def test_interval_of_four_by_hand():
    # 256 resamples of 0, 0, 0, 4: the mean is k where k of 4 draws hit the 4, binomial with p = 1/4.
    # P(4) = 1/256, P(>= 3) = 13/256 > 2.5 %: the upper quantile is 3; P(0) = 81/256: the lower one 0.
    low, high = bootstrap_interval([0.0, 0.0, 0.0, 4.0])
    assert low == pytest.approx(1 - stretch(4) * 1)
    assert high == pytest.approx(1 + stretch(4) * 2)


def test_interval_turns_with_its_values():
    values = np.array([0.3, 0.1, 0.7, 0.9, 0.2])
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(-values) == (pytest.approx(-high), pytest.approx(-low))


def test_interval_of_equal_values_is_a_point():
    low, high = bootstrap_interval([0.5] * 4)
    assert (low, high) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_interval_of_few(n):
    assert np.isnan(bootstrap_interval(np.zeros(n))).all()


@pytest.mark.parametrize("n", [3, 4, 5, 6, 10, 30])
def test_interval_holds_the_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(0.8, 0.02, (4000, n))
    low, high = bootstrap_interval(samples)
    assert low.shape == (4000,)
    assert np.mean((low <= 0.8) & (high >= 0.8)) == pytest.approx(0.95, abs=0.02)


def test_over_seeds_by_hand():
    table = pl.DataFrame(
        {
            "arm": ["a", "a", "a", "a", "b", "b", "c"],
            "seed": [0, 1, 2, 2, 0, 1, 0],
            # Two runs of arm a share seed 2: they count once, with their mean, 6.
            "x": [1.0, 2.0, 5.0, 7.0, 3.0, float("nan"), None],
        }
    )
    a, b = over_seeds(table, "x").rows(named=True)
    assert (a["arm"], a["n"], a["mean"]) == ("a", 3, pytest.approx(3.0))
    assert a["sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert (a["low"], a["high"]) == tuple(pytest.approx(float(end)) for end in bootstrap_interval([1.0, 2.0, 6.0]))
    assert b == {"arm": "b", "n": 1, "mean": 3.0, "sd": None, "low": None, "high": None}


def test_intervals_keep_to_what_is_possible():
    table = pl.DataFrame({"arm": ["a"] * 3, "seed": [0, 1, 2], "x": [0.4, 0.6, 0.9]})
    free, bounded = (over_seeds(table, "x", bounds=b).row(0, named=True) for b in (None, (0.0, 1.0)))
    assert (free["high"] > 1, bounded["high"], bounded["low"]) == (True, 1.0, max(0.0, free["low"]))


def test_effect_size_by_hand():
    # Differences 1, 2, 3: mean 2, sd 1, J = 1 - 3 / (4 * 2 - 1) = 4/7.
    assert effect_size([1.0, 2.0, 3.0]) == pytest.approx(2 * 4 / 7)
    assert effect_size([1.0, 2.0]) is None
    assert effect_size([1.0, 1.0, 1.0]) is None


def pairs(base, other, seeds=None):
    count = max(len(base), len(other))
    seeds = seeds or list(range(count))
    rows = [("base", s, v) for s, v in zip(seeds, base, strict=False)]
    rows += [("other", s, v) for s, v in enumerate(other)]
    return pl.DataFrame(rows, schema=["arm", "seed", "x"], orient="row")


def test_compare_by_hand():
    # Paired by seed: 0.10, 0.11, 0.12 more, though the seeds themselves differ much.
    (row,) = compare(pairs([0.2, 0.5, 0.8], [0.30, 0.61, 0.92]), "x", "base").rows(named=True)
    assert (row["arm"], row["n"], row["verdict"]) == ("other", 3, "higher")
    assert row["difference"] == pytest.approx(0.11)
    assert row["sd"] == pytest.approx(0.01)
    assert row["low"] == pytest.approx(0.11 - stretch(3) * 0.01)
    assert row["high"] == pytest.approx(0.11 + stretch(3) * 0.01)
    assert row["effect_size"] == pytest.approx(11 * 4 / 7)


def test_verdicts():
    def verdict(base, other):
        return compare(pairs(base, other), "x", "base")["verdict"].to_list()

    assert verdict([0.5, 0.5, 0.5], [0.4, 0.41, 0.39]) == ["lower"]
    assert verdict([0.5, 0.5, 0.5], [0.4, 0.6, 0.51]) == [NO_DIFFERENCE]
    assert verdict([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]) == [NO_DIFFERENCE]
    assert verdict([0.5] * 2, [0.9] * 2) == [TOO_FEW]
    assert MIN_SEEDS == 3


def test_seeds_without_a_partner_are_left_out():
    (row,) = compare(pairs([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], seeds=[1, 2, 7]), "x", "base").rows(named=True)
    assert (row["n"], row["difference"], row["verdict"]) == (2, pytest.approx(0.35), TOO_FEW)
    (row,) = compare(pairs([0.1], [0.5], seeds=[7]), "x", "base").rows(named=True)
    assert (row["n"], row["difference"], row["effect_size"], row["verdict"]) == (0, None, None, TOO_FEW)


def test_scipy_agrees_on_the_small_sample_factor():
    # For many values without skew, the interval is Student's.
    values = np.linspace(-1, 1, 40)
    low, high = bootstrap_interval(values)
    half = reference.t.ppf(0.975, 39) * values.std(ddof=1) / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)

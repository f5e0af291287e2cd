"""Intervals and comparisons, against numbers worked out by hand and against what intervals promise."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats as reference

from hpclbfl.analysis.measure.stats import (
    MIN_SEEDS,
    NO_DIFFERENCE,
    NO_SPREAD,
    TOO_FEW,
    compare,
    effect_size,
    holm,
    judged,
    mean_interval,
    over_seeds,
    seeds_needed,
)


def test_interval_of_three_by_hand():
    # Mean 3, sd sqrt(7), t(2) = 4.3027.
    low, high = mean_interval([1.0, 2.0, 6.0])
    assert (low, high) == (pytest.approx(3 - 4.3027 * math.sqrt(7 / 3), rel=1e-4), pytest.approx(9.5725, rel=1e-4))


def test_scipy_agrees_on_the_interval():
    values = np.random.default_rng(3).normal(size=(5, 7))
    low, high = mean_interval(values)
    expected = [reference.ttest_1samp(row, 0.0).confidence_interval(0.95) for row in values]
    np.testing.assert_allclose(low, [found.low for found in expected])
    np.testing.assert_allclose(high, [found.high for found in expected])


def test_interval_turns_with_its_values():
    values = np.array([0.3, 0.1, 0.7, 0.9, 0.2])
    low, high = mean_interval(values)
    assert mean_interval(-values) == (pytest.approx(-high), pytest.approx(-low))


def test_interval_of_equal_values_is_a_point():
    low, high = mean_interval([0.5] * 4)
    assert (low, high) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_interval_of_few(n):
    assert np.isnan(mean_interval(np.zeros(n))).all()


@pytest.mark.parametrize("n", [3, 4, 5, 6, 10, 30])
def test_interval_holds_the_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(0.8, 0.02, (4000, n))
    low, high = mean_interval(samples)
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
    assert (a["low"], a["high"]) == tuple(pytest.approx(float(end)) for end in mean_interval([1.0, 2.0, 6.0]))
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
    base, other = [0.2, 0.5, 0.8], [0.30, 0.61, 0.92]
    (row,) = compare(pairs(base, other), "x", "base").rows(named=True)
    assert (row["arm"], row["n"]) == ("other", 3)
    assert row["difference"] == pytest.approx(0.11)
    assert row["sd"] == pytest.approx(0.01)
    half = reference.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert (row["low"], row["high"]) == (pytest.approx(0.11 - half), pytest.approx(0.11 + half))
    assert row["effect_size"] == pytest.approx(11 * 4 / 7)
    assert row["p"] == pytest.approx(reference.ttest_rel(other, base).pvalue)
    # The variance of the differences, against that of both arms: all but 0.0001 / 0.1861.
    assert row["pairing"] == pytest.approx(1 - 1e-4 / (np.var(base, ddof=1) + np.var(other, ddof=1)))
    assert row["seeds_needed"] == MIN_SEEDS


def verdict(base, other, **more):
    return judged({"x": compare(pairs(base, other), "x", "base", **more)})["x"]["verdict"].to_list()


def test_verdicts():
    assert verdict([0.5, 0.5, 0.5], [0.4, 0.41, 0.39]) == ["lower"]
    assert verdict([0.4, 0.41, 0.39], [0.5, 0.5, 0.5]) == ["higher"]
    assert verdict([0.5, 0.5, 0.5], [0.4, 0.6, 0.51]) == [NO_DIFFERENCE]
    assert verdict([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]) == [NO_DIFFERENCE]
    assert verdict([0.5] * 2, [0.9] * 2) == [TOO_FEW]
    assert MIN_SEEDS == 3


def test_equal_differences_are_no_proof_unless_the_test_set_tells_them_from_rounding():
    # One image of 359, three times over.
    base, other = [0.5, 0.6, 0.7], [0.5 + 0.0028, 0.6 + 0.0028, 0.7 + 0.0028]
    assert verdict(base, other) == [NO_SPREAD]
    # Steps of 1 / 359 would give such differences by rounding alone ...
    assert verdict(base, other, rounding=1 / 359) == [NO_DIFFERENCE]
    # ... and steps of 1 / 100,000 would not.
    assert verdict(base, other, rounding=1e-5) == ["higher"]
    (row,) = compare(pairs(base, other), "x", "base", rounding=1e-5).rows(named=True)
    half = reference.t.ppf(0.975, 2) * 1e-5 / math.sqrt(6) / math.sqrt(3)
    assert (row["low"], row["high"]) == (pytest.approx(0.0028 - half), pytest.approx(0.0028 + half))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never less than one before.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]


def test_comparisons_of_a_table_are_corrected_together_and_equal_ones_once():
    one = compare(pairs([0.5, 0.51, 0.52], [0.53, 0.545, 0.548]), "x", "base")
    two = compare(pairs([0.5, 0.51, 0.52], [0.55, 0.54, 0.57]), "x", "base")
    (p,), (q,) = one["p"], two["p"]
    assert p < q
    both = judged({"steps": one, "samples": one, "seconds": two})
    assert both["steps"]["p_holm"].to_list() == both["samples"]["p_holm"].to_list() == [2 * p]
    assert both["seconds"]["p_holm"].to_list() == [max(2 * p, q)]


def test_of_eighteen_true_nulls_hardly_ever_one_is_called():
    rng = np.random.default_rng(1)
    called = raw = 0
    for _ in range(200):
        rows = [(f"a{arm}", seed, rng.normal()) for arm in range(19) for seed in range(3)]
        compared = compare(pl.DataFrame(rows, schema=["arm", "seed", "x"], orient="row"), "x", "a0")
        called += judged({"": compared})[""]["verdict"].is_in(["higher", "lower"]).any()
        raw += (compared["p"] < 0.05).any()
    # All 18 share a baseline, so that fewer tables than 60 % have a raw one.
    assert called <= 16 < 60 < raw


@pytest.mark.parametrize(("effect", "n"), [(0.5, 34), (1.0, 10), (2.0, 5), (-1.0, 10), (50.0, 3)])
def test_seeds_needed_are_those_of_power_tables(effect, n):
    # n of a paired t test, two-sided 5 %, power 0.8 (G*Power: 34, 10, 5).
    assert seeds_needed(effect) == n


def test_nobody_needs_more_than_a_thousand_seeds():
    assert seeds_needed(0.001) is None and seeds_needed(0.0) is None and seeds_needed(math.nan) is None


def test_seeds_without_a_partner_are_left_out():
    found = judged({"x": compare(pairs([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], seeds=[1, 2, 7]), "x", "base")})["x"]
    (row,) = found.rows(named=True)
    assert (row["n"], row["difference"], row["verdict"]) == (2, pytest.approx(0.35), TOO_FEW)
    (row,) = judged({"x": compare(pairs([0.1], [0.5], seeds=[7]), "x", "base")})["x"].rows(named=True)
    assert (row["n"], row["difference"], row["effect_size"], row["verdict"]) == (0, None, None, TOO_FEW)

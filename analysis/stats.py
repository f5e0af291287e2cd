"""Statistics over seeds: intervals, paired comparisons with effect sizes, and when there is nothing to say.

The interval of a mean over n seeds is the percentile bootstrap's, its two arms stretched by
sqrt(n / (n - 1)) t(n - 1) / z, the ratio of Student's interval to the one that the percentile bootstrap amounts to in
large samples (Hesterberg 2015, "What teachers should know about the bootstrap", widens the quantiles to the
same end). Unstretched it is the range of the values for n = 3 and holds the mean in 75 % of cases, not in 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement
from math import factorial, sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Of all intervals."""
MIN_SEEDS = 3
"""Below it there is no interval and no verdict."""
TOO_FEW = "not enough seeds to say"
NO_DIFFERENCE = "no difference seen"
RESAMPLES = 2000
"""Of the bootstrap, for n above 6; up to there all resamples are counted, with their probabilities."""

Floats = NDArray[np.float64]


def bootstrap_interval(values: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Interval of the mean over the last axis (see the module).

    Args:
        values: [..., n], one per seed.

    Returns:
        Lower and upper end, [...]; NaN for fewer than MIN_SEEDS values.
    """
    samples = np.asarray(values, np.float64)
    n = samples.shape[-1]
    if n < MIN_SEEDS:
        nothing = np.full(samples.shape[:-1], np.nan)
        return nothing, nothing
    flat = samples.reshape(-1, n)
    mean = flat.mean(axis=1)
    stretch = _stretch(n, level)
    low = mean - stretch * (mean - _bootstrap_quantile(flat, (1 - level) / 2))
    high = mean + stretch * (-_bootstrap_quantile(-flat, (1 - level) / 2) - mean)
    return low.reshape(samples.shape[:-1]), high.reshape(samples.shape[:-1])


def over_seeds(
    table: pl.DataFrame, column: str, by: Sequence[str] = ("arm",), bounds: tuple[float, float] | None = None
) -> pl.DataFrame:
    """Mean of a column over seeds, with its interval.

    Args:
        table: one row per run (and whatever else is in `by`): the columns `by`, `seed` and `column`. Runs that share
            a seed are averaged first, so that n counts seeds; rows without a number are left out.
        bounds: of the values, such as 0 and 1 for accuracies: of an interval the part within them is given.

    Returns:
        `by`, n, mean, sd (with n - 1; null for one seed), low, high (null for fewer than MIN_SEEDS seeds), in the
        order in which groups are met.
    """
    seeds = _one_per_seed(table, column, by)
    groups = seeds.group_by(*by, maintain_order=True).agg(
        n=pl.len(), mean=pl.col(column).mean(), sd=pl.col(column).std(), values=pl.col(column)
    )
    low, high = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    counts = groups["n"].to_numpy()
    for n in np.unique(counts):
        places = np.flatnonzero(counts == n)
        values = groups["values"].gather(places).explode().to_numpy().reshape(-1, n)
        low[places], high[places] = bootstrap_interval(values)
    if bounds is not None:
        low, high = np.clip(low, *bounds), np.clip(high, *bounds)
    return groups.drop("values").with_columns(
        pl.Series("low", low).fill_nan(None), pl.Series("high", high).fill_nan(None)
    )


def compare(table: pl.DataFrame, column: str, baseline: str) -> pl.DataFrame:
    """Every arm against a baseline, paired by seed: seeds that only one of the two has are left out.

    Args:
        table: one row per run: arm, seed, `column`.
        baseline: an arm.

    Returns:
        arm, n (pairs), difference (arm minus baseline, mean), sd of the differences, low, high, effect_size
        (`effect_size`) and verdict: higher, lower, NO_DIFFERENCE or TOO_FEW. A verdict is that of one interval; it is
        not corrected for the number of comparisons. By arm; the baseline has no row.
    """
    seeds = _one_per_seed(table, column, ("arm",))
    base = seeds.filter(pl.col("arm") == baseline).select("seed", base=column)
    pairs = seeds.filter(pl.col("arm") != baseline).join(base, on="seed", how="left", maintain_order="left")
    rows: list[dict[str, Any]] = []
    for (arm,), group in pairs.group_by("arm", maintain_order=True):
        paired = group.drop_nulls("base")
        differences = (paired[column] - paired["base"]).to_numpy()
        low, high = (float(end) for end in bootstrap_interval(differences))
        n = len(differences)
        rows.append(
            {
                "arm": arm,
                "n": n,
                "difference": float(differences.mean()) if n else None,
                "sd": float(differences.std(ddof=1)) if n > 1 else None,
                "low": low if n >= MIN_SEEDS else None,
                "high": high if n >= MIN_SEEDS else None,
                "effect_size": effect_size(differences),
                "verdict": _verdict(n, low, high),
            }
        )
    numbers = dict.fromkeys(("difference", "sd", "low", "high", "effect_size"), pl.Float64())
    return pl.DataFrame(
        rows, schema={"arm": seeds.schema["arm"], "n": pl.Int64(), **numbers, "verdict": pl.String()}, orient="row"
    ).sort("arm")


def effect_size(differences: ArrayLike) -> float | None:
    """Mean of paired differences in units of their standard deviation, corrected for small n (Hedges' g for pairs).

    g = J mean / sd with J = 1 - 3 / (4 (n - 1) - 1). None for fewer than MIN_SEEDS pairs, or where all are equal.
    """
    values = np.asarray(differences, np.float64)
    n = len(values)
    if n < MIN_SEEDS or not (sd := float(values.std(ddof=1))) > 0:
        return None
    return float((1 - 3 / (4 * (n - 1) - 1)) * values.mean() / sd)


def _one_per_seed(table: pl.DataFrame, column: str, by: Sequence[str]) -> pl.DataFrame:
    found = table.select(*by, "seed", pl.col(column).cast(pl.Float64).fill_nan(None)).drop_nulls(column)
    return found.group_by(*by, "seed", maintain_order=True).agg(pl.col(column).mean())


def _verdict(n: int, low: float, high: float) -> str:
    if n < MIN_SEEDS:
        return TOO_FEW
    return "higher" if low > 0 else "lower" if high < 0 else NO_DIFFERENCE


def _stretch(n: int, level: float) -> float:
    # The two functions that are needed; scipy.stats takes a second to import.
    from scipy.special import ndtri, stdtrit

    tail = (1 + level) / 2
    return float(sqrt(n / (n - 1)) * stdtrit(n - 1, tail) / ndtri(tail))


def _bootstrap_quantile(values: Floats, tail: float) -> Floats:
    """Smallest bootstrap mean at or below which a share `tail` of the resamples lies; values [m, n], result [m]."""
    weights, chances = _resamples(values.shape[1])
    quantiles = np.empty(len(values))
    block = max(1, 2_000_000 // len(weights))
    for begin in range(0, len(values), block):
        means = values[begin : begin + block] @ weights.T
        order = np.argsort(means, axis=1)
        reached = np.cumsum(chances[order], axis=1) >= tail - 1e-12
        first = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
        quantiles[begin : begin + block] = np.take_along_axis(means, first, axis=1)[:, 0]
    return quantiles


@cache
def _resamples(n: int) -> tuple[Floats, Floats]:
    """Weights [r, n] of the values in r resamples, each row with sum 1, and the resamples' probabilities [r]."""
    if n > 6:
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        return counts / n, np.full(RESAMPLES, 1 / RESAMPLES)
    counts = np.array([np.bincount(pick, minlength=n) for pick in combinations_with_replacement(range(n), n)])
    ways = np.array([factorial(n) / np.prod([factorial(int(k)) for k in row]) for row in counts])
    return counts / n, ways / n**n

"""Statistics over seeds: intervals, paired comparisons, their correction for multiplicity, and the seeds needed.

The interval of a mean over n seeds is Student's, mean +- t(n - 1) sd / sqrt(n). Comparisons are paired by seed and
corrected for all comparisons of their table by Holm's step-down procedure (S. Holm, "A simple sequentially rejective
multiple test procedure", Scandinavian Journal of Statistics 6, 1979): the probability that any verdict of a table is
wrong is at most 5 %.

Three equal differences have no spread and prove nothing: an accuracy over N test samples is a multiple of 1 / N. If N
is known, the spread is taken to be at least that of rounding to such multiples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import isfinite, sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Confidence level of all intervals; 1 minus it is the significance level of a table."""
MIN_SEEDS = 3
"""With fewer seeds there is no interval and no verdict."""
POWER = 0.8
"""Power that `seeds_needed` requires."""
MOST_SEEDS = 1000
"""Most seeds that `seeds_needed` considers."""
TOO_FEW = "not enough seeds to say"
NO_SPREAD = "no spread to judge by"
NO_DIFFERENCE = "no difference seen"

Floats = NDArray[np.float64]


def mean_interval(values: ArrayLike, least_sd: float = 0.0) -> tuple[Floats, Floats]:
    """Student's interval of the mean over the last axis.

    Args:
        values: [..., n], one per seed.
        least_sd: lower bound of the standard deviation.

    Returns:
        Lower and upper end, [...]; NaN for fewer than MIN_SEEDS values.
    """
    samples = np.asarray(values, np.float64)
    n = samples.shape[-1]
    if n < MIN_SEEDS:
        nothing = np.full(samples.shape[:-1], np.nan)
        return nothing, nothing
    mean = samples.mean(axis=-1)
    half = _t_quantile(n - 1, (1 + LEVEL) / 2) * np.maximum(samples.std(axis=-1, ddof=1), least_sd) / sqrt(n)
    return mean - half, mean + half


def over_seeds(
    table: pl.DataFrame, column: str, by: Sequence[str] = ("arm",), bounds: tuple[float, float] | None = None
) -> pl.DataFrame:
    """Mean of a column over seeds, with its interval.

    Args:
        table: one row per run (and value of `by`): the columns `by`, `seed` and `column`. Runs that share a seed are
            averaged first, so that n counts seeds; rows without a number are left out.
        bounds: of the values, such as 0 and 1 for accuracies; intervals are clipped to them.

    Returns:
        `by`, n, mean, sd (with n - 1; null for one seed), low, high (null for fewer than MIN_SEEDS seeds), in the
        order of first occurrence.
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
        low[places], high[places] = mean_interval(values)
    if bounds is not None:
        low, high = np.clip(low, *bounds), np.clip(high, *bounds)
    return groups.drop("values").with_columns(
        pl.Series("low", low).fill_nan(None), pl.Series("high", high).fill_nan(None)
    )


def compare(table: pl.DataFrame, column: str, baseline: str, rounding: float | None = None) -> pl.DataFrame:
    """Every arm against a baseline, paired by seed; seeds that only one of the two has are left out.

    Args:
        table: one row per run: arm, seed, `column`.
        baseline: an arm.
        rounding: values of the column are multiples of it, 1 / N for an accuracy over N samples; None: not known.

    Returns:
        arm, n (pairs), difference (arm minus baseline, mean), sd of the differences, low, high (95 %, not corrected),
        effect_size (see there), p (two-sided, of Student's paired test; null without spread), seeds_needed (see there,
        for a difference as large as this one), pairing (share of the variance that pairing removed; negative: it added
        some; null if the arms have no spread). Sorted by arm; the baseline has no row. `judged` adds the verdicts.
    """
    # Standard deviation that rounding alone gives to the difference of two values.
    least_sd = 0.0 if rounding is None else rounding / sqrt(6)
    seeds = _one_per_seed(table, column, ("arm",))
    base = seeds.filter(pl.col("arm") == baseline).select("seed", base=column)
    pairs = seeds.filter(pl.col("arm") != baseline).join(base, on="seed", how="left", maintain_order="left")
    rows: list[dict[str, Any]] = []
    for (arm,), group in pairs.group_by("arm", maintain_order=True):
        paired = group.drop_nulls("base")
        own, other = paired[column].to_numpy(), paired["base"].to_numpy()
        rows.append({"arm": arm, **_paired(own, other, least_sd)})
    numbers = dict.fromkeys(("difference", "sd", "low", "high", "effect_size", "p"), pl.Float64())
    schema = {
        "arm": seeds.schema["arm"],
        "n": pl.Int64(),
        **numbers,
        "seeds_needed": pl.Int64(),
        "pairing": pl.Float64(),
    }
    return pl.DataFrame(rows, schema=schema, orient="row").sort("arm")


def _paired(own: Floats, other: Floats, least_sd: float) -> dict[str, Any]:
    differences = own - other
    n = len(differences)
    found: dict[str, Any] = {"n": n, "difference": float(differences.mean()) if n else None}
    if n < 2:
        return found
    found["sd"] = float(differences.std(ddof=1))
    spread = max(_true_sd(differences), least_sd)
    apart = float(own.var(ddof=1) + other.var(ddof=1))
    found["pairing"] = 1 - found["sd"] ** 2 / apart if apart > 0 else None
    if n >= MIN_SEEDS:
        low, high = mean_interval(differences, least_sd=least_sd)
        found |= {"low": float(low), "high": float(high), "effect_size": effect_size(differences)}
    if n >= MIN_SEEDS and spread > 0:
        found["p"] = _p_value(found["difference"] / spread * sqrt(n), n - 1)
        found["seeds_needed"] = seeds_needed(found["difference"] / spread)
    return found


def judged(tables: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Comparisons with their verdicts, corrected for the number of all of them.

    Args:
        tables: results of `compare` that are shown as one table, by name.

    Returns:
        The same with the columns p_holm (p corrected by Holm's procedure) and verdict: higher, lower, NO_DIFFERENCE,
        NO_SPREAD or TOO_FEW.
    """
    # Equal tables, such as those at equal steps and at equal samples, count as one comparison.
    firsts: dict[tuple[float | None, ...], None] = dict.fromkeys(tuple(table["p"]) for table in tables.values())
    corrected = iter(holm([p for first in firsts for p in first]))
    by_first = {first: [next(corrected) for _ in first] for first in firsts}
    found = {}
    for name, table in tables.items():
        p_holm = by_first[tuple(table["p"])]
        verdicts = [
            _verdict(n, difference, p) for n, difference, p in zip(table["n"], table["difference"], p_holm, strict=True)
        ]
        found[name] = table.with_columns(
            pl.Series("p_holm", p_holm, dtype=pl.Float64), pl.Series("verdict", verdicts, dtype=pl.String)
        )
    return found


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected by Holm's procedure; None stays None and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected


def effect_size(differences: ArrayLike) -> float | None:
    """Mean of paired differences in units of their standard deviation, corrected for small n (Hedges' g for pairs).

    g = J mean / sd with J = 1 - 3 / (4 (n - 1) - 1). None for fewer than MIN_SEEDS pairs, or if all are equal.
    """
    values = np.asarray(differences, np.float64)
    n = len(values)
    if n < MIN_SEEDS or not (sd := _true_sd(values)) > 0:
        return None
    return float((1 - 3 / (4 * (n - 1) - 1)) * values.mean() / sd)


def seeds_needed(effect: float) -> int | None:
    """Seeds for which a paired test at 5 % detects a difference of this size with POWER; at least MIN_SEEDS.

    Args:
        effect: mean of the differences in units of their standard deviation.

    Returns:
        None: more than MOST_SEEDS.
    """
    if not isfinite(effect) or effect == 0:
        return None
    low, high = MIN_SEEDS - 1, MOST_SEEDS
    if _power(abs(effect), high) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(abs(effect), middle) >= POWER else (middle, high)
    return high


def _power(effect: float, n: int) -> float:
    """Power of Student's paired test at 5 % with n pairs, counting only verdicts in the right direction."""
    from scipy.special import nctdtr

    found = 1 - float(nctdtr(n - 1, effect * sqrt(n), _t_quantile(n - 1, (1 + LEVEL) / 2)))
    # Far out in the tail, where the power is 1, scipy returns NaN.
    return found if isfinite(found) else 1.0


def _one_per_seed(table: pl.DataFrame, column: str, by: Sequence[str]) -> pl.DataFrame:
    found = table.select(*by, "seed", pl.col(column).cast(pl.Float64).fill_nan(None)).drop_nulls(column)
    return found.group_by(*by, "seed", maintain_order=True).agg(pl.col(column).mean())


def _true_sd(values: Floats) -> float:
    """Standard deviation (n - 1); 0 if it is only the rounding of double precision."""
    sd = float(values.std(ddof=1))
    return sd if sd > 1e-12 * float(np.abs(values).max(initial=1.0)) else 0.0


def _verdict(n: int, difference: float | None, p: float | None) -> str:
    if n < MIN_SEEDS or difference is None:
        return TOO_FEW
    if difference == 0:
        return NO_DIFFERENCE
    if p is None:
        return NO_SPREAD
    if p > 1 - LEVEL:
        return NO_DIFFERENCE
    return "higher" if difference > 0 else "lower"


def _p_value(t: float, df: int) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(t)))


@cache
def _t_quantile(df: int, probability: float) -> float:
    # Not from scipy.stats, which takes a second to import.
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))

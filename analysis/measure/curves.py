"""Curves of many runs as lines of a figure: on few points that the runs of an arm share, some of them marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

CURVE_POINTS = 60
"""Points of a learning curve, at most."""
BUDGET_ROWS = 30_000
"""Rows of a table of curves, about: with many curves each has fewer points, at least 12."""
MARKS = 6
"""Points of a curve, about, at which the symbol of its arm is drawn."""

Numbers = NDArray[Any]


def points_per_curve(runs: pl.DataFrame) -> int:
    """Number of points per curve that keeps the curves of all arms and seeds together small."""
    curves = runs["arm"].n_unique() + (len(runs) if runs["seed"].n_unique() > 1 else 0)
    return int(np.clip(BUDGET_ROWS // max(1, curves), 12, CURVE_POINTS))


def on_arm_grids(curves: pl.DataFrame, runs: pl.DataFrame, columns: Sequence[str], points: int) -> pl.DataFrame:
    """Curves (run, x, columns) of each arm on points that all of them reach: run, arm, seed, label, x, columns.

    The curves' own points if they agree, so that nothing is interpolated; else an even grid over the range that they
    have in common. No rows if they have none in common.
    """
    keys = runs.with_columns(place=pl.int_range(pl.len()))
    table = curves.join(keys.select("run", "arm", "place"), on="run").sort("arm", "place", "x", maintain_order=True)
    arm, place = (table[name].to_physical().to_numpy() for name in ("arm", "place"))
    x, values = table["x"].to_numpy(), [table[name].to_numpy() for name in columns]
    places: list[Numbers] = [np.zeros(0, np.int64)]
    found: list[list[Numbers]] = [[np.zeros(0)] for _ in ("x", *columns)]
    for begin, end in _stretches(arm):
        members = [slice(begin + b, begin + e) for b, e in _stretches(place[begin:end])]
        first = x[members[0]]
        if all(np.array_equal(x[member], first) for member in members):
            kept = np.unique(np.linspace(0, len(first) - 1, points).round().astype(int))
            grid = first[kept]
        else:
            ends = max(x[member][0] for member in members), min(x[member][-1] for member in members)
            size = min(points, max(member.stop - member.start for member in members))
            grid = np.unique(np.linspace(*ends, size)) if ends[0] <= ends[1] else np.zeros(0)
        for member in members:
            places.append(np.full(len(grid), place[member.start]))
            found[0].append(grid)
            for column, known in zip(found[1:], values, strict=True):
                column.append(np.interp(grid, x[member], known[member]) if len(grid) else grid)
    series = [pl.Series(name, np.concatenate(parts)) for name, parts in zip(("x", *columns), found, strict=True)]
    return (
        runs[np.concatenate(places)]
        .select("run", "arm", "seed", "label", *series)
        .with_columns(pl.col(*columns).fill_nan(None))
    )


def _stretches(codes: Numbers) -> list[tuple[int, int]]:
    """Begin and end of each stretch of equal neighbours."""
    borders = np.flatnonzero(np.diff(codes)) + 1
    return list(zip([0, *borders], [*borders, len(codes)], strict=True)) if len(codes) else []


def marked(table: pl.DataFrame) -> pl.DataFrame:
    """Add the column `mark`: where the symbol of the arm is drawn, at different places for each arm."""
    place = pl.int_range(pl.len()).over("arm", "seed")
    stride = (pl.len().over("arm", "seed") / MARKS).ceil().cast(pl.Int64)
    shift = pl.col("arm").to_physical().cast(pl.Int64)
    return table.with_columns(mark=(place + shift) % stride == 0)


def per_seed(table: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The rows of single seeds, labelled so; none if there is only one seed."""
    if runs["seed"].n_unique() < 2:
        return table.clear()
    return table.with_columns(label=pl.format("{} (seed {})", pl.col("arm").cast(pl.String), "seed"))


def with_seeds(
    means: pl.DataFrame, table: pl.DataFrame, runs: pl.DataFrame, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Means over seeds (seed null), and the rows of single seeds after them: arm, seed, label, then the columns.

    Args:
        columns: of the rows of single seeds; None: those of the means.
    """
    names = [name for name in columns or means.columns if name in table.columns and name not in ("arm", "label")]
    single = per_seed(table, runs).select("arm", "seed", "label", *names)
    overall = means.with_columns(seed=pl.lit(None, table.schema["seed"]))
    return pl.concat(
        [overall.select("arm", "seed", "label", pl.exclude("arm", "seed", "label")), single], how="diagonal"
    )

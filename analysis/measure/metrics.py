"""Measures from evaluations: accuracy at equal steps, samples and seconds, targets, gaps, speed-up.

Pure functions on the frames of `frames.Frames`; accuracies are from 0 to 1, times in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import polars as pl

Axis = Literal["steps", "samples", "seconds"]
"""Budgets at which runs are compared: optimizer steps, samples processed by all clients, seconds of training."""
AXES: tuple[Axis, ...] = get_args(Axis)

METRIC = "metric "
"""Begins the name of a column that a job's loss reports."""
_POSITIONS: dict[Axis, pl.Expr] = {
    # An evaluation's step is the last one before it, counted from 0.
    "steps": pl.col("step") + 1,
    "samples": pl.col("num_samples"),
    "seconds": pl.col("elapsed_s"),
}


def along(evals: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    """Learning curves: run, x (on the axis) and test accuracy top1, by run and x."""
    rows = _tests(evals).select("run", "top1", x=_POSITIONS[axis].cast(pl.Float64))
    return rows.filter(pl.col("x").is_finite()).select("run", "x", "top1").sort("run", "x", maintain_order=True)


def common_point(evals: pl.DataFrame, axis: Axis) -> float | None:
    """The farthest point on an axis that the test evaluations of every run reach; None without evaluations."""
    ends = along(evals, axis).group_by("run").agg(pl.col("x").max())
    return None if ends.is_empty() else float(np.asarray(ends["x"]).min())


def accuracy_at(evals: pl.DataFrame, axis: Axis, points: float | Sequence[float]) -> pl.DataFrame:
    """Test accuracy at given points of an axis, interpolated linearly between evaluations.

    Returns:
        run, x, top1: one row per run and point; null before a run's first evaluation and after its last one.
    """
    wanted = np.atleast_1d(np.asarray(points, np.float64))
    table = along(evals, axis)
    x, top1 = table["x"].to_numpy(), table["top1"].to_numpy()
    ends = table["run"].rle().struct.unnest()["len"].cum_sum().to_list()
    spans = list(zip([0, *ends], ends, strict=False))
    values = [np.interp(wanted, x[b:e], top1[b:e], left=np.nan, right=np.nan) for b, e in spans]
    return pl.DataFrame(
        {
            "run": table["run"].gather(np.repeat([b for b, _ in spans], len(wanted))),
            "x": np.tile(wanted, len(spans)),
            "top1": np.concatenate([np.zeros(0), *values]),
        }
    ).with_columns(pl.col("top1").fill_nan(None))


def to_target(evals: pl.DataFrame, target: float) -> pl.DataFrame:
    """Cost of the first test evaluation at or above a target accuracy: run, steps, samples, seconds.

    Every run with a test evaluation has a row; null if it never reached the target.
    """
    tests = _tests(evals)
    reached = tests.filter(pl.col("top1") >= target).group_by("run", maintain_order=True).first()
    found = reached.select("run", **_POSITIONS)
    return tests.select(pl.col("run").unique(maintain_order=True)).join(found, on="run", how="left")


def final(evals: pl.DataFrame) -> pl.DataFrame:
    """The last test evaluation of every run, and the best.

    Returns:
        run, top1, top5, loss (test, last), best_top1 (over all test evaluations), steps, samples and seconds at the
        last one, samples_per_s (over the run's training time).
    """
    return (
        _tests(evals)
        .with_columns(**_POSITIONS)
        .group_by("run", maintain_order=True)
        .agg(
            pl.col("top1", "top5").last().fill_nan(None),
            pl.col("loss", *AXES).last(),
            pl.col("top1").fill_nan(None).max().alias("best_top1"),
        )
        .with_columns(samples_per_s=pl.when(pl.col("seconds") > 0).then(pl.col("samples") / pl.col("seconds")))
    )


def final_metrics(metrics: pl.DataFrame) -> pl.DataFrame:
    """What the last test evaluation of every run says of each metric of its loss: run, then a column for each."""
    prefix = "test "
    tests = metrics.filter(pl.col("name").str.starts_with(prefix), pl.col("client") < 0).sort("run", "step")
    last = tests.group_by("run", "name", maintain_order=True).last().with_columns(pl.col("value").fill_nan(None))
    named = last.select("run", pl.col("name").str.strip_prefix(prefix), "value").sort("run", "name")
    return named.pivot("name", index="run", values="value", sort_columns=True)


def generalisation_gap(evals: pl.DataFrame) -> pl.DataFrame:
    """Train minus test accuracy at the last step at which a run was evaluated on both splits: run, step, gap_top1.

    Runs whose job evaluates only the test split have no row.
    """
    train = evals.filter(pl.col("split") == "train").select("run", "step", train="top1")
    both = _tests(evals).join(train, on=("run", "step"), maintain_order="left")
    last = both.group_by("run", maintain_order=True).last()
    return last.select("run", "step", gap_top1=pl.col("train") - pl.col("top1"))


def speed_up(
    table: pl.DataFrame, rate: str = "samples_per_s", size: str = "clients", within: Sequence[str] = ()
) -> pl.DataFrame:
    """Speed-up and efficiency against one client: S(n) = rate(n) / rate(1), E(n) = S(n) / n.

    The rate may be samples per second (weak and strong scaling alike), or 1 / seconds to a target.

    Args:
        table: a row per run (or arm) with the columns `rate`, `size` and `within`.
        within: columns that must be equal for two rows to be compared, such as the local batch size.

    Returns:
        The table with speed_up and efficiency; null if there is no row of size 1 to compare with, or the row has no
        size. The rate of size 1 is the mean over all such rows.
    """
    is_one = pl.col(size) == 1
    one = pl.col(rate).filter(is_one).mean()
    base = one.over(*within) if within else one
    scaled = table.with_columns(speed_up=pl.when(pl.col(size).is_not_null()).then(pl.col(rate) / base))
    return scaled.with_columns(efficiency=pl.col("speed_up") / pl.col(size))


def _tests(evals: pl.DataFrame) -> pl.DataFrame:
    return evals.filter(pl.col("split") == "test").sort("run", "step", maintain_order=True)

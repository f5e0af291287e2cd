"""The data of the figures: one small table per figure, aggregated over seeds and thinned.

All tables have `arm`, `seed` (null: over all seeds of the arm; a number: that seed only) and `label` (the arm with its
n or its seed). Accuracies and shares are in %. An arm without a complete run shows its unfinished runs, and its label
says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from hpclbfl.analysis.measure import metrics, stats, step_metrics
from hpclbfl.analysis.measure.curves import (
    BUDGET_ROWS,
    CURVE_POINTS,
    marked,
    on_arm_grids,
    per_seed,
    points_per_curve,
    with_seeds,
)
from hpclbfl.analysis.measure.eigenvalues import read_all
from hpclbfl.analysis.read.frames import Frames

PERCENT = (0.0, 100.0)
NORM_FLOOR = 1e-7
"""Gradient norms below it are zero up to rounding in float32 (see `hpclbfl.gradients.change`) and are drawn at it."""
CHANGE_RANGE = (1e-3, 1e3)
"""Range of relative changes; values outside are drawn at its ends."""


def figure_runs(frames: Frames) -> pl.DataFrame:
    """The runs that are drawn: run, arm, seed, label (of the arm), n (seeds of the arm).

    Of every arm the complete runs; if there are none, those that did not fail and lost no rows, as `unfinished`.
    """
    lost = frames.problems.filter("rows_lost").select("run")
    known = frames.runs.join(lost, on="run", how="anti").filter(
        pl.col("arm").is_not_null() & (pl.col("state") != "failed")
    )
    has_complete = pl.col("complete").any().over("arm")
    drawn = known.filter(pl.col("complete") | ~has_complete)
    n = pl.col("seed").n_unique().over("arm")
    unfinished = pl.when("complete").then(pl.lit("")).otherwise(pl.lit(", unfinished"))
    label = pl.format("{} (n={}{})", pl.col("arm").cast(pl.String), n, unfinished)
    return drawn.select("run", "arm", "seed", label=label, n=n).sort("arm", "seed", maintain_order=True)


def learning_curves(frames: Frames, runs: pl.DataFrame, axis: metrics.Axis) -> pl.DataFrame:
    """Test accuracy along an axis: arm, seed, label, x, mean, low, high (%; null: no interval), mark."""
    curves = metrics.along(frames.evals, axis).with_columns(top1=pl.col("top1") * 100)
    table = on_arm_grids(curves, runs, ["top1"], points_per_curve(runs))
    means = stats.over_seeds(table, "top1", ("arm", "label", "x"), PERCENT).drop("n", "sd")
    return marked(with_seeds(means, table.rename({"top1": "mean"}), runs))


def final_accuracy(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Test accuracy at the end, %: arm, seed, label, kind (`mean`, or `seed`: one run), mean, low, high."""
    table = runs.join(metrics.final(frames.evals), on="run").with_columns(top1=pl.col("top1") * 100)
    means = stats.over_seeds(table, "top1", ("arm", "label"), PERCENT).drop("n", "sd")
    single = table.select("arm", "label", "seed", mean="top1")
    overall = pl.concat(
        [
            means.with_columns(seed=pl.lit(None, pl.Int64), kind=pl.lit("mean")),
            single.with_columns(seed=pl.lit(None, pl.Int64), kind=pl.lit("seed")),
        ],
        how="diagonal",
    )
    return pl.concat([overall, per_seed(single, runs).with_columns(kind=pl.lit("mean"))], how="diagonal")


def sharpness_points(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Sharpness and accuracy (Fig. 3), one row per run, at the last step whose Hessian was measured.

    arm, seed, label, run, step, eigenvalue (the top one), residual, has_settled, low, high (eigenvalue minus and plus
    residual; at least a tenth of the eigenvalue, for a logarithmic axis), top1 (%).
    """
    last = read_all(frames)[0].filter(pl.col("index") == 0).group_by("run", maintain_order=True).last()
    table = runs.join(last.drop("seed"), on="run", maintain_order="left").with_columns(
        pl.col("run").cast(pl.String),
        top1=pl.col("top1") * 100,
        low=pl.max_horizontal(pl.col("eigenvalue") - pl.col("residual"), pl.col("eigenvalue") / 10),
        high=pl.col("eigenvalue") + pl.col("residual"),
    )
    columns = ("run", "step", "eigenvalue", "residual", "has_settled", "low", "high", "top1")
    table = table.select("arm", "seed", "label", *columns).drop_nulls("top1")
    return pl.concat([table.with_columns(seed=pl.lit(None, table.schema["seed"])), per_seed(table, runs)])


def gradients(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Gradient norm, its sum over steps, and its change (Fig. 6).

    arm, seed, label, x, norm, cumulative_norm, change (means over seeds), mark, threshold (of the arm's scaler), and
    norm_beyond, change_beyond: `above` or `below` if the value is outside the axis and replaced by the end of it.
    """
    points = points_per_curve(runs) // 2
    curves = step_metrics.gradient_curves(_steps_of(frames, runs), points)
    columns = ("norm", "cumulative_norm", "change")
    table = on_arm_grids(curves, runs, columns, points)
    means = table.group_by("arm", "label", "x", maintain_order=True).agg(pl.col(columns).mean())
    rows = marked(with_seeds(means, table, runs)).with_columns(
        *_clipped("norm", NORM_FLOOR, float("inf")), *_clipped("change", *CHANGE_RANGE)
    )
    if "gradients.scaler.threshold" not in frames.runs.columns:
        return rows.with_columns(threshold=pl.lit(None, pl.Float64))
    thresholds = frames.runs.join(runs, on="run", how="semi").select(
        "arm", threshold=pl.col("gradients.scaler.threshold").cast(pl.Float64)
    )
    return rows.join(thresholds.unique("arm"), on="arm", how="left", maintain_order="left")


def _clipped(name: str, low: float, high: float) -> list[pl.Expr]:
    value = pl.col(name)
    beyond = pl.when(value < low).then(pl.lit("below")).when(value > high).then(pl.lit("above"))
    return [value.clip(low, high), beyond.alias(f"{name}_beyond")]


def scale_factor(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Density of the scale factor (Fig. 7, 8); arms whose factor is 1 in every step are left out, as in the paper.

    arm, seed, label (with the share of steps at X), factor, density (per octave), mark (the peak above 1). Means over
    all seeds of the arm, including those whose factor is always 1.
    """
    counts = step_metrics.scale_counts(_steps_of(frames, runs)).join(
        runs.select("run", "arm"), on="run", maintain_order="left"
    )
    counts = counts.filter((pl.col("scale") != 1).any().over("arm"))
    octaves = np.log2(counts["scale"].to_numpy())
    grid = np.arange(min(0.0, octaves.min(initial=0.0)) - 0.75, octaves.max(initial=0.0) + 0.75, 0.05)
    if points_per_curve(runs) < CURVE_POINTS:
        grid = grid[::2]
    density = step_metrics.scale_density(counts, list(grid)).with_columns(factor=2.0 ** pl.col("octave"))
    table = density.join(step_metrics.scaled_share(counts), on="run").join(runs, on="run")
    means = table.group_by("arm", "label", "factor", maintain_order=True).agg(
        pl.col("density").mean(), pl.col("share_scaled").mean()
    )
    both = with_seeds(means, table, runs, ["factor", "density", "share_scaled"])
    share = (pl.col("share_scaled") * 100).round(0).cast(pl.Int64)
    label = pl.format("{}: {} % of steps", pl.col("label"), share)
    peak = pl.col("density").filter(pl.col("factor") > 2**0.5).max().over("arm", "seed")
    mark = (pl.col("density") == peak) & (pl.col("factor") > 2**0.5) & (pl.col("share_scaled") > 0)
    return both.with_columns(label=label, mark=mark.fill_null(False)).drop("share_scaled").sort("arm")


def time_shares(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Where a step's time goes (Eq. 2), %: arm, seed, label, part, share.

    Parts: compute, data, transfer and wait; `sync` instead of the last two if they were not measured separately.
    """
    shares = step_metrics.time_shares(_steps_of(frames, runs))
    is_split = pl.col("share_wait").is_not_null()
    split = shares.with_columns(sync=pl.when(~is_split).then("share_sync")).rename(
        {f"share_{part}": part for part in ("compute", "data", "transfer", "wait")}
    )
    table = split.unpivot(["compute", "data", "transfer", "wait", "sync"], index="run", variable_name="part")
    table = table.drop_nulls("value").with_columns(share=pl.col("value") * 100).join(runs, on="run")
    means = table.group_by("arm", "label", "part", maintain_order=True).agg(pl.col("share").mean())
    return with_seeds(means, table, runs, ["part", "share"]).sort("arm", maintain_order=True)


def example_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """One run per arm, that of the lowest seed, for data that cannot be averaged; the label has its seed."""
    first = runs.sort("arm", "seed", maintain_order=True).unique("arm", keep="first", maintain_order=True)
    return first.with_columns(label=pl.format("{} (seed {})", pl.col("arm").cast(pl.String), "seed"))


def batch_sizes(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Local batches over steps, of one run per arm: arm, seed (null), label, clients, client, step, local_batch_size.

    Clients whose batches are always equal share a line: `clients` lists them, `client` is the first of them.
    """
    example = example_runs(runs)
    changes = step_metrics.batch_changes(frames.steps, example["run"].cast(pl.String).to_list())
    course = changes.group_by("run", "client", maintain_order=True).agg("step", "local_batch_size")
    lines = course.group_by("run", "step", "local_batch_size", maintain_order=True).agg(
        pl.col("client").min(), clients=pl.col("client").sort()
    )
    texts = [_ranges(clients) for clients in lines["clients"].to_list()]
    lines = lines.with_columns(pl.Series("clients", texts, dtype=pl.String)).explode("step", "local_batch_size")
    rows = lines.with_columns(place=pl.int_range(pl.len()).over("run", "client"))
    is_last = pl.col("place") == pl.col("place").max().over("run", "client")
    stride = max(1, len(rows) // BUDGET_ROWS)
    thin = rows.filter((pl.col("place") % stride == 0) | is_last)
    return _example(thin, example).select("arm", "seed", "label", "clients", "client", "step", "local_batch_size")


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text: `0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def client_times(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """Mean time of a step on each client, of one run per arm: arm, seed (null), label, client, part, ms."""
    example = example_runs(runs)
    times = step_metrics.client_times(_steps_of(frames, example))
    is_split = pl.col("t_wait_s").is_not_null()
    table = times.select(
        *("run", "client"),
        compute="t_compute_s",
        data="t_data_s",
        transfer="t_transfer_s",
        wait="t_wait_s",
        sync=pl.when(~is_split).then("t_sync_s"),
    ).unpivot(["compute", "data", "transfer", "wait", "sync"], index=["run", "client"], variable_name="part")
    table = table.drop_nulls("value").with_columns(ms=pl.col("value") * 1000)
    return _example(table, example).select("arm", "seed", "label", "client", "part", "ms").sort("arm", "client")


def _steps_of(frames: Frames, runs: pl.DataFrame) -> pl.LazyFrame:
    return frames.steps.join(runs.lazy().select("run"), on="run", how="semi")


def _example(table: pl.DataFrame, example: pl.DataFrame) -> pl.DataFrame:
    found = table.join(example.select("run", "arm", "label"), on="run").sort("arm", maintain_order=True)
    return found.with_columns(seed=pl.lit(None, pl.Int64))

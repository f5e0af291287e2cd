"""The runs in one row each, and the arms in one row each: what tables and the page's head show."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from hpclbfl.analysis import metrics, stats, traces
from hpclbfl.analysis.arms import differing_keys
from hpclbfl.analysis.configs import describe_partition, describe_sync
from hpclbfl.analysis.frames import Frames
from hpclbfl.errors import ConfigError

_FINAL = ("top1", "top5", "best_top1", "loss", "samples_per_s")
_UNBOUNDED = ("gap_top1", "samples_per_s", "elapsed_s")
_SHARES = ("share_data", "share_compute", "share_sync", "share_wait")


@dataclass(frozen=True)
class Headline:
    """Arms side by side; accuracies are means over seeds of complete runs, shares (0 to 1)."""

    arms: pl.DataFrame
    """arm, runs, complete (of them), n (seeds that count), and for each measure m of top1, at_steps, at_samples,
    at_seconds, best_top1, gap_top1, share_scaled, samples_per_s, elapsed_s: m, m_low, m_high; where there is a target,
    also target_steps, target_samples, target_seconds (means over the seeds that reached it) and reached (their
    number); where one client (else: one rank) stands beside several, speed_up and efficiency in samples per second.
    Null: not measured, or no interval."""
    points: dict[metrics.Axis, float]
    """Where at_steps, at_samples and at_seconds were taken: the farthest points that all complete runs reach."""
    baseline: str | None
    """The arm that others are compared with; None where there is but one."""
    comparisons: dict[str, pl.DataFrame]
    """By measure (at_steps, at_samples, at_seconds, top1): every arm against the baseline, see `stats.compare`."""
    target: float | None
    size: str | None = None
    """What speed_up is over: clients or num_ranks; None where no arm has one of them and another has more."""


def summarise(frames: Frames) -> pl.DataFrame:
    """One row per run.

    Columns: run, path, arm, seed, state, complete, sync, partition, clients, num_ranks, engine; steps, epochs,
    num_samples, train_loss (see `traces.totals`); top1, top5, loss, best_top1, samples_per_s (see `metrics.final`);
    gap_top1; elapsed_s (of training; until the last evaluation where a run is not done); share_data, share_compute,
    share_sync, share_wait (see `traces.time_shares`); share_scaled. Null: not measured.
    """
    runs = frames.runs
    clients = pl.col("clients") if "clients" in runs.columns else pl.lit(None, pl.Int64).alias("clients")
    jobs = runs.rows(named=True)
    base = runs.select(
        *("run", "path", "arm", "seed", "state", "complete"),
        pl.Series("sync", [describe_sync(job) for job in jobs], dtype=pl.String),
        pl.Series("partition", [describe_partition(job) for job in jobs], dtype=pl.String),
        clients,
        *("num_ranks", "engine", "elapsed_s"),
    )
    base = base.with_columns(
        pl.when(pl.col("state") == "unreadable").then(pl.lit("?")).otherwise(pl.col(name)).alias(name)
        for name in ("sync", "partition")
    )
    final = metrics.final(frames.evals).select("run", *_FINAL, "seconds")
    gap = metrics.generalisation_gap(frames.evals).select("run", "gap_top1")
    shares = traces.time_shares(frames.steps).select("run", *_SHARES)
    scaled = traces.scaled_share(traces.scale_counts(frames.steps))
    for part in (traces.totals(frames.steps), final, gap, shares, scaled):
        base = base.join(part, on="run", how="left", maintain_order="left")
    return base.with_columns(elapsed_s=pl.coalesce(pl.col("elapsed_s").cast(pl.Float64), "seconds")).drop("seconds")


def headline(
    frames: Frames, summary: pl.DataFrame, baseline: str | None = None, target: float | None = None
) -> Headline:
    """Arms side by side.

    Args:
        summary: of the frames, from `summarise`.
        baseline: label of the arm to compare with; None: the first one that has a complete run.
        target: accuracy (0 to 1) that is to be reached.

    Raises:
        ConfigError: no arm has that label.
    """
    complete = summary.filter("complete")
    evals = frames.evals.join(complete.select("run"), on="run", how="semi")
    points = {axis: point for axis in metrics.AXES if (point := metrics.common_point(evals, axis)) is not None}
    table = complete
    for axis, point in points.items():
        at = metrics.accuracy_at(evals, axis, point).select("run", pl.col("top1").alias(f"at_{axis}"))
        table = table.join(at, on="run", how="left", maintain_order="left")
    at_points = [f"at_{axis}" for axis in points]
    groups = summary.drop_nulls("arm").group_by("arm").agg(runs=pl.len(), complete=pl.col("complete").sum())
    seeds = complete.group_by("arm").agg(n=pl.col("seed").n_unique())
    arms = groups.join(seeds, on="arm", how="left").with_columns(pl.col("n").fill_null(0)).sort("arm")
    for measure in ("top1", *at_points, "best_top1", "gap_top1", "share_scaled", "samples_per_s", "elapsed_s"):
        found = stats.over_seeds(table, measure, bounds=None if measure in _UNBOUNDED else (0.0, 1.0))
        found = found.select("arm", pl.col("mean").alias(measure), *_ends(measure))
        arms = arms.join(found, on="arm", how="left", maintain_order="left")
    if target is not None:
        reached = table.select("run", "arm", "seed").join(metrics.to_target(evals, target), on="run")
        means = [pl.col(axis).mean().alias(f"target_{axis}") for axis in metrics.AXES]
        found = reached.group_by("arm").agg(*means, reached=pl.col("seed").filter(pl.col("steps") > 0).n_unique())
        arms = arms.join(found, on="arm", how="left", maintain_order="left")
    size = next((name for name in ("clients", "num_ranks") if _scales(frames.runs, name)), None)
    if size is not None:
        arms = _with_speed_up(arms, frames.runs, size)
    base = _baseline(arms, baseline)
    comparisons = {} if base is None else {m: stats.compare(table, m, base) for m in (*at_points, "top1")}
    return Headline(arms, points, base, comparisons, target, size)


def ranked_arms(arms: pl.DataFrame, baseline: str | None, limit: int) -> list[str]:
    """Labels of the arms that a figure has room for, in their order: all, or the baseline and the most accurate.

    Args:
        arms: `Headline.arms`.
    """
    labels: list[str] = arms["arm"].cast(pl.String).to_list()
    if len(labels) <= limit:
        return labels
    best = arms.sort("top1", descending=True, nulls_last=True)["arm"].cast(pl.String).to_list()
    first = [baseline] if baseline is not None else []
    chosen = set((first + [arm for arm in best if arm not in first])[:limit])
    return [label for label in labels if label in chosen]


def _scales(runs: pl.DataFrame, size: str) -> bool:
    counts = runs.drop_nulls("arm")[size].unique() if size in runs.columns else pl.Series()
    return len(counts) > 1 and 1 in counts.to_list()


def _with_speed_up(arms: pl.DataFrame, runs: pl.DataFrame, size: str) -> pl.DataFrame:
    """With speed_up and efficiency, against the arm of size 1 whose job is the same in all else."""
    within = [key for key in differing_keys(runs) if key not in ("seed", "name", "engine", "num_ranks", size)]
    jobs = runs.drop_nulls("arm").unique("arm", keep="first", maintain_order=True).select("arm", size, *within)
    table = arms.select("arm", "samples_per_s").join(jobs, on="arm", how="left", maintain_order="left")
    found = metrics.speed_up(table, size=size, within=within)
    return arms.join(found.select("arm", "speed_up", "efficiency"), on="arm", how="left", maintain_order="left")


def _ends(measure: str) -> list[pl.Expr]:
    return [pl.col(end).alias(f"{measure}_{end}") for end in ("low", "high")]


def _baseline(arms: pl.DataFrame, wanted: str | None) -> str | None:
    labels = arms["arm"].cast(pl.String).to_list()
    if wanted is not None:
        if wanted not in labels:
            raise ConfigError(f"--baseline: no arm is called '{wanted}'; there are: {'; '.join(labels)}")
        return wanted
    usable = arms.filter(pl.col("n") > 0)["arm"].cast(pl.String).to_list()
    return usable[0] if len(labels) > 1 and usable else None

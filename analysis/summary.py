"""The runs in one row each: what was run, how it ended, where its time went."""

from __future__ import annotations

import polars as pl

from hpclbfl.analysis import metrics, step_metrics
from hpclbfl.analysis.configs import describe_partition, describe_sync
from hpclbfl.analysis.frames import Frames

_FINAL = ("top1", "top5", "best_top1", "loss", "samples_per_s")
_SHARES = ("share_data", "share_compute", "share_sync", "share_wait")


def summarise(frames: Frames) -> pl.DataFrame:
    """One row per run.

    Columns: run, path, arm, seed, state, complete, sync, partition, clients, num_ranks, engine; steps, epochs,
    num_samples, train_loss (see `step_metrics.totals`); top1, top5, loss, best_top1, samples_per_s (see
    `metrics.final`); gap_top1; elapsed_s (training time, until the last evaluation if the run is not done); share_data,
    share_compute, share_sync, share_wait (see `step_metrics.time_shares`); share_scaled. Null: not measured.
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
    shares = step_metrics.time_shares(frames.steps).select("run", *_SHARES)
    scaled = step_metrics.scaled_share(step_metrics.scale_counts(frames.steps))
    for part in (step_metrics.totals(frames.steps), final, gap, shares, scaled):
        base = base.join(part, on="run", how="left", maintain_order="left")
    return base.with_columns(elapsed_s=pl.coalesce(pl.col("elapsed_s").cast(pl.Float64), "seconds")).drop("seconds")

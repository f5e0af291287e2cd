"""A report on a folder of runs, computed: runs, arms, and what went wrong. `printing` and `page` show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hpclbfl.analysis.measure import eigenvalues, metrics, step_metrics
from hpclbfl.analysis.measure.arm_summary import ArmSummary, summarise_arms
from hpclbfl.analysis.read.configs import describe_partition, describe_sync
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.read.load import load
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import DataError
from hpclbfl.core.text import printable

logger = Diagnostics(__name__)

_FINAL = ("top1", "top5", "best_top1", "loss", "samples_per_s")
_SHARES = ("share_data", "share_compute", "share_sync", "share_wait")


@dataclass(frozen=True)
class Report:
    """A folder of runs, summarised."""

    frames: Frames
    runs: pl.DataFrame
    """One row per run, see `summarise`."""
    arms: list[ArmSummary]
    """One summary per task."""


def summarise(frames: Frames) -> pl.DataFrame:
    """One row per run: what was run, how it ended, where its time went.

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
    of_losses = metrics.final_metrics(frames.metrics)
    of_losses = of_losses.rename({name: f"{metrics.METRIC}{name}" for name in of_losses.columns if name != "run"})
    for part in (step_metrics.totals(frames.steps), final, gap, shares, scaled, of_losses):
        base = base.join(part, on="run", how="left", maintain_order="left")
    return base.with_columns(elapsed_s=pl.coalesce(pl.col("elapsed_s").cast(pl.Float64), "seconds")).drop("seconds")


def make_report(frames: Frames, baseline: str | None = None, target: float | None = None) -> Report:
    """Summarise runs and their arms; for `baseline`, `target` and errors see `arm_summary.summarise_arms`."""
    runs = summarise(frames)
    return Report(frames, runs, summarise_arms(frames, runs, baseline, target))


def load_some(directory: str | Path) -> Frames:
    """The runs at or below a folder; `Frames.notes` go to stderr.

    Raises:
        DataError: there is no such folder, or it holds no run.
    """
    frames = load(directory)
    for note in frames.notes:
        logger.warning(note)
    if frames.runs.is_empty():
        raise DataError(f"{directory}: holds no run; a run folder has a config.yaml, 'hpclbfl train' makes one")
    return frames


def summary_rows(report: Report) -> list[dict[str, Any]]:
    """One row per run, for machines: the columns of `summarise`, `ranks` for num_ranks, and `problems`.

    With a target also target_steps, target_samples, target_seconds of the run; if the arms have a speed-up, speed_up
    and efficiency of its arm. Accuracies and shares are numbers from 0 to 1, times seconds; None: not measured.
    """
    runs, tasks = report.runs, report.arms
    texts = problem_lines(report.frames)
    target = next((task.target for task in tasks if task.target is not None), None)
    if target is not None:
        took = metrics.to_target(report.frames.evals, target).rename({axis: f"target_{axis}" for axis in metrics.AXES})
        runs = runs.join(took, on="run", how="left", maintain_order="left")
    scaled = [task.arms.select("arm", "speed_up", "efficiency") for task in tasks if task.size is not None]
    if scaled:
        runs = runs.join(pl.concat(scaled), on="arm", how="left", maintain_order="left")
    rows = runs.rename({"num_ranks": "ranks"}).with_columns(steps=pl.col("steps").fill_null(0))
    return [{**row, "problems": texts.get(row["run"], [])} for row in rows.rows(named=True)]


def problem_lines(frames: Frames) -> dict[str, list[str]]:
    """By run, what is wrong with it, one line each: why it failed, files that are torn or missing, no attempt."""
    lines: dict[str, list[str]] = {}
    for row in frames.runs.rows(named=True):
        if row["state"] == "failed":
            lines.setdefault(row["run"], []).append(f"failed: {row['error'] or 'no reason given'}")
    for row in frames.problems.rows(named=True):
        has_rows = not row["path"].endswith(".json")
        harmless = " (a later attempt trained its steps again)" if has_rows and not row["rows_lost"] else ""
        lines.setdefault(row["run"], []).append(f"{frames.root / row['path']}: {row['reason']}{harmless}")
    for run, path, reason in eigenvalues.read_all(frames)[1]:
        lines.setdefault(run, []).append(f"{frames.root / path}: {reason}")
    for row in frames.runs.rows(named=True):
        if not row["num_attempts"]:
            lines.setdefault(row["run"], []).append("has no attempt yet")
    return {run: list(map(printable, texts)) for run, texts in lines.items()}

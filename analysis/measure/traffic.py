"""How much clients send: per step and in all, with and without compression, beside the time that it takes.

Under compression the log's table `metrics` has what each reduction sent (`sent_mb`), what it lost (`compression_error`)
and the level that a rule chose (`compression_level`). Of other runs the provenance tells the size of a reduction, and a
ring allreduce over n ranks sends 2 (n - 1) / n of that.
"""

from __future__ import annotations

import polars as pl

from hpclbfl.analysis.read.frames import Frames

SENT, ERROR, LEVEL = "sent_mb", "compression_error", "compression_level"


def traffic(frames: Frames, arms: pl.DataFrame) -> pl.DataFrame:
    """What a rank sends in the runs of each arm, means over runs.

    Args:
        arms: of the runs that count: run, arm.

    Returns:
        arm, sent_mb (of a run, MB), step_mb (per step), share (of what it would send without compression; null:
        unknown), transfer_s (t_transfer per step), step_s (a step), error (phi, mean over reductions; null: not
        measured), level_low, level_high (null: no rule). Empty where no run of these arms was compressed.
    """
    own = frames.metrics.join(arms.select("run"), on="run", how="semi").filter(
        pl.col("name").is_in([SENT, ERROR, LEVEL]) & (pl.col("client") < 0)
    )
    if not (own["name"] == SENT).any():
        return _empty()
    measured = own.group_by("run").agg(
        sent=pl.col("value").filter(pl.col("name") == SENT).sum(),
        reductions=(pl.col("name") == SENT).sum(),
        error=pl.col("value").filter((pl.col("name") == ERROR) & pl.col("value").is_finite()).mean(),
        level_low=pl.col("value").filter(pl.col("name") == LEVEL).min(),
        level_high=pl.col("value").filter(pl.col("name") == LEVEL).max(),
    )
    steps = frames.steps.join(arms.lazy().select("run"), on="run", how="semi").filter(pl.col("rank") == 0)
    times = (
        steps.group_by("run")
        .agg(
            steps=pl.col("step").max() + 1,
            rounds=pl.col("round").max() + 1,
            transfer=pl.col("t_transfer_s").fill_nan(None).sum(),
            spent=pl.col("t_step_s").fill_nan(None).sum(),
        )
        .collect(engine="streaming")
    )
    ranks = pl.col("num_ranks").cast(pl.Float64)
    whole = 2 * (ranks - 1) / ranks * pl.col("message_bytes") / 1e6 * pl.coalesce("reductions", "rounds")
    rows = (
        arms.select("run", "arm")
        .join(frames.runs.select("run", "num_ranks", "message_bytes"), on="run")
        .join(times, on="run")
        .join(measured, on="run", how="left")
        .with_columns(whole=whole)
        .with_columns(sent=pl.coalesce("sent", "whole"))
    )
    return rows.group_by("arm", maintain_order=True).agg(
        sent_mb=pl.col("sent").mean(),
        step_mb=(pl.col("sent") / pl.col("steps")).mean(),
        share=(pl.col("sent") / pl.when(pl.col("whole") > 0).then(pl.col("whole"))).mean(),
        transfer_s=(pl.col("transfer") / pl.col("steps")).mean(),
        step_s=(pl.col("spent") / pl.col("steps")).mean(),
        error=pl.col("error").mean(),
        level_low=pl.col("level_low").min(),
        level_high=pl.col("level_high").max(),
    )


def _empty() -> pl.DataFrame:
    columns = ("sent_mb", "step_mb", "share", "transfer_s", "step_s", "error", "level_low", "level_high")
    return pl.DataFrame(schema={"arm": pl.String, **dict.fromkeys(columns, pl.Float64)})

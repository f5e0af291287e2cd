"""Measures of a teacher (Eq. 5) from the table `metrics`: its trainings, and how much it changes the gradient."""

from __future__ import annotations

import polars as pl

from hpclbfl.analysis.measure.curves import marked, on_arm_grids, points_per_curve, with_seeds
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.gradients.teacher.kind import ENERGY, ERROR, NOISE, SECONDS

NOISE_PANEL, CAPTURED_PANEL = "noise", "captured"


def trainings(metrics: pl.DataFrame) -> pl.DataFrame:
    """One row per run with a teacher.

    Returns:
        run; training_steps; energy (mean share that the encoding keeps; null: nothing is encoded); error (mean on
        gradients that had not been learnt from); noise (mean of |A(G) - G|^2 / |G|^2 over steps and clients); seconds
        (of all training steps together).
    """
    value = pl.col("value").fill_nan(None)

    def of(name: str) -> pl.Expr:
        return value.filter(pl.col("name") == name)

    rows = metrics.filter(pl.col("name").is_in([ENERGY, ERROR, NOISE, SECONDS]))
    return rows.group_by("run", maintain_order=True).agg(
        training_steps=of(SECONDS).len().cast(pl.Int64),
        energy=of(ENERGY).mean(),
        error=of(ERROR).mean(),
        noise=of(NOISE).mean(),
        seconds=of(SECONDS).sum(),
    )


def teacher_curves(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """The figure's rows: arm, seed, label, x (step + 1), value, panel, mark; means over seeds.

    Panel `noise`: |A(G) - G|^2 / |G|^2, mean over a stretch of steps and over clients; `captured`: share of fresh
    gradients that the teacher predicts, 1 - its error, at its training steps.
    """
    value = pl.when(pl.col("name") == ERROR).then(1 - pl.col("value")).otherwise("value")
    panel = pl.col("name").replace_strict({NOISE: NOISE_PANEL, ERROR: CAPTURED_PANEL}, return_dtype=pl.String)
    rows = frames.metrics.filter(pl.col("name").is_in([NOISE, ERROR]) & pl.col("value").is_finite()).select(
        "run", "step", value=value, panel=panel
    )
    points = points_per_curve(runs) // 2
    width = pl.max_horizontal(1.0, (pl.col("step").max() + 1) / points).over("run")
    stretch = pl.when(pl.col("panel") == NOISE_PANEL).then((pl.col("step") / width).floor()).otherwise("step")
    curves = (
        rows.with_columns(stretch=stretch)
        .group_by("run", "panel", "stretch", maintain_order=True)
        .agg(pl.col("value").mean(), x=(pl.col("step").max() + 1).cast(pl.Float64))
        .sort("run", "panel", "x")
    )
    found = []
    for name in (NOISE_PANEL, CAPTURED_PANEL):
        table = on_arm_grids(curves.filter(pl.col("panel") == name).drop("panel", "stretch"), runs, ["value"], points)
        means = table.group_by("arm", "label", "x", maintain_order=True).agg(pl.col("value").mean())
        found.append(marked(with_seeds(means, table, runs)).with_columns(panel=pl.lit(name)))
    return pl.concat(found, how="diagonal")

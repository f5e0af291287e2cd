"""How sharp the minima are that runs ended in, beside how well they generalise (Fig. 3).

Eigenvalues come from the files that `hpclbfl sharpness` writes into run folders; runs without one have no row.
"""

from __future__ import annotations

from pathlib import Path

import altair as alt
import polars as pl

from hpclbfl.analysis import metrics
from hpclbfl.analysis.frames import Frames
from hpclbfl.analysis.style import SHAPES, Chart, color, finish, legend, loose, rows, tips
from hpclbfl.sharpness.store import DTYPES, FILE_NAME, read_sharpness

_COLUMNS = DTYPES["eigenvalues"]


def sharpness(frames: Frames) -> pl.DataFrame:
    """One row per run, optimizer step and eigenvalue, by run, step and index.

    Columns: run, step (optimizer steps taken), index (0: the largest in magnitude), eigenvalue and residual (nats),
    iterations, num_samples, seed (of the images and start vectors), top1 (share; test accuracy at that step, on the
    line between two evaluations), gap_top1 (train - test accuracy at that step). Null: not measured there.

    Raises:
        DataError: a file cannot be read.
    """
    keys = frames.runs.schema["run"]
    parts = []
    for run, path in frames.runs.select("run", "path").iter_rows():
        file = Path(path) / FILE_NAME
        if file.is_file():
            table = read_sharpness(file)[0]["eigenvalues"]
            columns = {name: table[name] for name in table.dtype.names or ()}
            parts.append(pl.DataFrame({"run": pl.Series([run] * len(table), dtype=keys), **columns}))
    types = {name: pl.Float64 if _COLUMNS[name].kind == "f" else pl.Int64 for name in _COLUMNS.names or ()}
    found = pl.concat([pl.DataFrame(schema={"run": keys, **types}), *parts])
    evals = frames.evals.join(found.select("run").unique(), on="run", how="semi")
    steps = found["step"].unique().sort()
    accuracy = metrics.accuracy_at(evals, "steps", [float(step) for step in steps])
    accuracy = accuracy.select("run", "top1", step=pl.col("x").cast(pl.Int64))
    # An evaluation's step is the last one before it, counted from 0.
    gap = metrics.generalisation_gap(evals).select("run", "gap_top1", step=pl.col("step") + 1)
    for more in (accuracy, gap):
        found = found.join(more, on=("run", "step"), how="left", maintain_order="left")
    return found.sort("run", "step", "index", maintain_order=True)


def accuracy_by_sharpness(width: int = 520, height: int = 300) -> Chart:
    """Test accuracy against the Hessian's top eigenvalue, a mark per run (Fig. 3); bars are residuals.

    On a logarithmic axis; how many runs it has no place for is written into the figure.
    """
    y = alt.Y("top1:Q", title="test accuracy (%)", scale=loose())
    title = "top eigenvalue of the training loss's Hessian (log scale)"
    x = alt.X(
        "eigenvalue:Q",
        title=title,
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format="~g", labelOverlap=True),
    )
    shape = alt.Shape("label:N", title=None, scale=alt.Scale(range=list(SHAPES)), legend=legend())
    about = tips("label:N", "run:N", "step:Q", "eigenvalue:Q", "residual:Q", "top1:Q")
    positive = rows().transform_filter("datum.eigenvalue > 0")
    bars = positive.mark_rule(strokeWidth=1.2).encode(alt.X("low:Q", title=title), alt.X2("high:Q"), y, color())
    marks = positive.mark_point(size=64, filled=True, opacity=0.9).encode(x, y, color(), shape, tooltip=about)
    left_out = (
        rows()
        .transform_filter("datum.eigenvalue <= 0")
        .transform_aggregate(runs="count()")
        .transform_filter("datum.runs > 0")
        .transform_calculate(text="'runs without a positive eigenvalue, not drawn: ' + datum.runs")
        .mark_text(align="left", baseline="bottom", fontSize=11)
        .encode(x=alt.value(6), y=alt.value(height - 4), text="text:N")
    )
    return finish(alt.layer(bars, marks, left_out), width, height)

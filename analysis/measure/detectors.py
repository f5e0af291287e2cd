"""How the watched detectors of critical phases compare: how often each fires, and how far they agree.

The log's table `metrics` has `<name> change` and `<name> fires` of each (see `hpclbfl.gradients.watch`). In local
training every client has its own, and its steps count one by one.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hpclbfl.analysis.measure.plot_data import example_runs
from hpclbfl.analysis.measure.step_metrics import gradient_curves
from hpclbfl.analysis.read.frames import Frames

STRETCHES = 240
"""Into which the steps of a run are divided in the figure, at most."""
_FIRES, _CHANGE = " fires", " change"


def firings(metrics: pl.DataFrame) -> pl.DataFrame:
    """What the watched detectors did: run, client, step, detector, fires.

    Args:
        metrics: see `frames.Frames`.

    Returns:
        A row per run, client, step and detector; fires is null where the change is not known. Detectors are an Enum in
        alphabetical order.
    """
    name = pl.col("name")
    found = metrics.filter(name.str.ends_with(_FIRES)).with_columns(detector=name.str.strip_suffix(_FIRES))
    changes = metrics.filter(name.str.ends_with(_CHANGE)).select(detector=name.str.strip_suffix(_CHANGE)).unique()
    found = found.join(changes, on="detector", how="semi", maintain_order="left")
    labels = found["detector"].unique().sort()
    return found.select(
        *("run", "client", "step"),
        pl.col("detector").cast(pl.Enum(labels)),
        fires=pl.when(pl.col("value").is_finite()).then(pl.col("value") > 0),
    )


def duties(found: pl.DataFrame, arms: pl.DataFrame) -> pl.DataFrame:
    """How often each detector fires in the runs of each arm.

    Args:
        found: see `firings`.
        arms: of the runs that count: run, arm.

    Returns:
        arm, detector, known (steps whose change is known), firings (those of them in which it fires), duty (their
        share; null: no change is known).
    """
    return (
        found.join(arms.select("run", "arm"), on="run")
        .group_by("arm", "detector")
        .agg(known=pl.col("fires").count(), firings=pl.col("fires").sum())
        .with_columns(duty=pl.when(pl.col("known") > 0).then(pl.col("firings") / pl.col("known")))
        .sort("arm", "detector")
    )


def agreements(found: pl.DataFrame, arms: pl.DataFrame) -> pl.DataFrame:
    """How far each two detectors agree in the runs of each arm.

    Args:
        found, arms: see `duties`.

    Returns:
        arm, detector, other, kappa: a row for each ordered pair; null: undefined, see `cohens_kappa`.
    """
    rows = []
    for (arm,), own in found.join(arms.select("run", "arm"), on="run").group_by("arm", maintain_order=True):
        names = own["detector"].unique().sort().to_list()
        wide = own.pivot("detector", index=["run", "client", "step"], values="fires")
        for name in names:
            for other in (other for other in names if other != name):
                both = wide.select(name, other).drop_nulls()
                kappa = cohens_kappa(both[name].to_numpy(), both[other].to_numpy())
                rows.append((arm, name, other, kappa))
    table = pl.DataFrame(
        rows,
        schema={"arm": pl.String, "detector": pl.String, "other": pl.String, "kappa": pl.Float64},
        orient="row",
    )
    return table.with_columns(pl.col("kappa").fill_nan(None))


def cohens_kappa(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e).

    J. Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20, 1960. p_o
    is the share of steps in which they agree, p_e that expected of independent raters who fire as often as these.

    Args:
        first, second: [N] whether each fires.

    Returns:
        1: they always agree; 0: as independent raters would; NaN: undefined, as both fire always, or never, or N is 0.
    """
    if not len(first):
        return float("nan")
    one, other = float(first.mean()), float(second.mean())
    expected = one * other + (1 - one) * (1 - other)
    return float("nan") if expected == 1 else (float((first == second).mean()) - expected) / (1 - expected)


def raster(frames: Frames, runs: pl.DataFrame) -> pl.DataFrame:
    """When the watched detectors fire, and the gradient's norm, of one run per arm.

    Returns:
        arm, seed (null), label; for stretches of steps: detector, place (of the detector among all), begin, end (steps;
        the end is not included), share (of the steps, and clients, whose change is known: in which it fires; null: it
        is not known in any); for the norm: x (step), norm. Empty if no run watches a detector.
    """
    found = firings(frames.metrics)
    example = example_runs(runs).join(found.select("run").unique(), on="run", how="semi", maintain_order="left")
    own = found.join(example.select("run"), on="run", how="semi")
    width = pl.max_horizontal(1.0, (pl.col("step").max().over("run") + 1) / STRETCHES)
    stretches = (
        own.with_columns(stretch=(pl.col("step") / width).floor().cast(pl.Int64))
        .group_by("run", "detector", "stretch")
        .agg(begin=pl.col("step").min(), end=pl.col("step").max() + 1, share=pl.col("fires").mean())
        .sort("run", "detector", "stretch")
        # Neighbours that are alike are one bar.
        .group_by("run", "detector", pl.struct("run", "detector", "share").rle_id().alias("bar"), maintain_order=True)
        .agg(pl.col("begin").min(), pl.col("end").max(), pl.col("share").first())
        .with_columns(place=pl.col("detector").to_physical().cast(pl.Int64))
        .with_columns(pl.col("detector").cast(pl.String))
        .drop("bar")
    )
    steps = frames.steps.join(example.lazy().select("run"), on="run", how="semi")
    norms = gradient_curves(steps, STRETCHES).select("run", "x", "norm").filter(pl.col("norm") > 0)
    table = pl.concat([stretches, norms], how="diagonal").join(example.select("run", "arm", "label"), on="run")
    return table.drop("run").with_columns(seed=pl.lit(None, pl.Int64)).sort("arm", maintain_order=True)

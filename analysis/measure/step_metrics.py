"""Measures from steps: where the time goes, gradients, the scale factor, batches, slow clients.

Pure functions on the frame `steps` of `frames.Frames` (lazy or not: one row per run, client and step). They read only
the columns that they need, as a stream, so that the frame may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from hpclbfl.core.errors import DataError

Steps = pl.DataFrame | pl.LazyFrame

FINAL_SHARE = 0.1
"""The training loss is the mean over the last steps, this share of all."""
BANDWIDTH = 0.15
"""Width of the kernel for the density of the scale factor, octaves."""


def totals(steps: Steps) -> pl.DataFrame:
    """Per run: steps (taken), epochs, num_samples, train_loss.

    train_loss is the mean over the samples of the last 10 % of the steps (at least one), nats; NaN if a loss was NaN,
    null if there was no sample.
    """
    lazy = steps.lazy().select("run", "step", "epoch", "num_samples", "loss", "local_batch_size")
    ends = lazy.group_by("run").agg(
        steps=pl.col("step").max() + 1, epochs=pl.col("epoch").max(), num_samples=pl.col("num_samples").max()
    )
    counted = (pl.col("steps") * FINAL_SHARE).round().cast(pl.Int64)
    first = pl.col("steps") - pl.max_horizontal(1, counted)
    size = pl.col("local_batch_size")
    last = lazy.join(ends.select("run", first=first), on="run").filter((pl.col("step") >= pl.col("first")) & (size > 0))
    losses = last.group_by("run").agg(train_loss=(pl.col("loss") * size).sum() / size.sum())
    return _collect(ends.join(losses, on="run", how="left")).sort("run")


def time_shares(steps: Steps) -> pl.DataFrame:
    """Shares of the time of all clients' steps (Eq. 2), 0 to 1: t_step = t_data + t_compute + t_sync.

    Returns:
        run, share_data, share_compute, share_sync, and its parts share_wait (for slower ranks) and share_transfer,
        null if they were not measured. Steps whose time was not measured are left out.
    """
    parts = ("data", "compute", "sync", "wait", "transfer")
    total = pl.col("t_step_s").sum()
    lazy = steps.lazy().select("run", "t_step_s", *(f"t_{p}_s" for p in parts)).filter(pl.col("t_step_s").is_finite())
    sums = lazy.group_by("run").agg(
        pl.when(total > 0).then(_sum_if_any(f"t_{p}_s") / total).alias(f"share_{p}") for p in parts
    )
    return _collect(sums).sort("run")


def client_times(steps: Steps) -> pl.DataFrame:
    """Time of a step on each client, which shows stragglers.

    Returns:
        run, client, and the mean seconds per step t_data_s, t_compute_s, t_wait_s, t_transfer_s, t_sync_s; null if not
        measured.
    """
    times = ("t_data_s", "t_compute_s", "t_wait_s", "t_transfer_s", "t_sync_s")
    groups = steps.lazy().group_by("run", "client").agg(pl.col(name).fill_nan(None).mean() for name in times)
    return _collect(groups).sort("run", "client")


def batch_changes(steps: Steps, runs: Sequence[str]) -> pl.DataFrame:
    """The steps of some runs at which a client's batch size changed: run, client, step, local_batch_size.

    The first and the last step of a client are always included.
    """
    wanted = steps.lazy().filter(pl.col("run").cast(pl.String).is_in(list(runs)))
    rows = _collect(wanted.select("run", "client", "step", "local_batch_size")).sort("run", "client", "step")
    size = pl.col("local_batch_size")
    is_change = (size != size.shift()).over("run", "client").fill_null(True)
    return rows.filter(is_change | pl.col("step").shift(-1).over("run", "client").is_null())


def gradient_curves(steps: Steps, num_points: int = 60) -> pl.DataFrame:
    """Gradient norm and its change over the run (Fig. 6; Eq. 8), in `num_points` stretches of equal length.

    A run may reduce gradients first and train locally later (post-local SGD): of every step the norm that it has is
    used. Steps whose norm was not measured or is not finite are left out.

    Returns:
        run, x (step + 1 of the last step of the stretch), norm (mean of |G| in it, of the reduced gradient or, in local
        training, of the clients' own gradients), cumulative_norm (sum of |G| over all steps up to its end), change
        (median of the relative change of |G|^2).
    """
    norms = ("grad_sq_norm", "local_grad_sq_norm")
    lazy = (
        steps.lazy()
        .select("run", "step", *norms, change=pl.col("grad_change").fill_nan(None))
        .with_columns(pl.when(pl.col(name).is_finite()).then(name).sqrt().alias(name) for name in norms)
    )
    last_reduced = pl.col("step").filter(pl.col("grad_sq_norm").is_not_null()).max()
    ends = lazy.group_by("run").agg(end=pl.col("step").max() + 1, last_reduced=last_reduced.fill_null(-1))
    width = pl.max_horizontal(1.0, pl.col("end") / num_points)
    norm = pl.when(pl.col("step") <= pl.col("last_reduced")).then("grad_sq_norm").otherwise("local_grad_sq_norm")
    binned = (
        lazy.join(ends, on="run")
        .with_columns(bin=(pl.col("step") / width).floor().cast(pl.Int64), norm=norm)
        .group_by("run", "bin")
        .agg(
            pl.col("norm").mean(),
            pl.col("change").median(),
            x=pl.col("step").max() + 1,
            count=pl.col("step").filter(pl.col("norm").is_not_null()).n_unique(),
        )
    )
    found = _collect(binned).drop_nulls("norm").sort("run", "x")
    return found.select(
        "run",
        pl.col("x").cast(pl.Float64),
        "norm",
        cumulative_norm=(pl.col("norm") * pl.col("count")).cum_sum().over("run"),
        change="change",
    )


def scale_counts(steps: Steps) -> pl.DataFrame:
    """How often the gradient was multiplied by each factor: run, scale, count (of client steps)."""
    lazy = steps.lazy().select("run", "scale").filter(pl.col("scale").is_finite() & (pl.col("scale") > 0))
    return _collect(lazy.group_by("run", "scale").agg(count=pl.len())).sort("run", "scale")


def scaled_share(counts: pl.DataFrame) -> pl.DataFrame:
    """Share of steps with a factor other than 1 (Fig. 7, 8), from `scale_counts`: run, share_scaled."""
    scaled = pl.col("count").filter(pl.col("scale") != 1).sum()
    return counts.group_by("run", maintain_order=True).agg(share_scaled=scaled / pl.col("count").sum())


def scale_density(counts: pl.DataFrame, octaves: Sequence[float]) -> pl.DataFrame:
    """Kernel density estimate of the scale factor over a run's steps (Fig. 7 and 8), from `scale_counts`.

    The Gaussian kernel has a fixed width, BANDWIDTH, on log2(scale), so that the peaks at X = 2 and X = 16 look alike;
    the density is per octave and integrates to 1.

    Args:
        octaves: log2(scale) at which to evaluate it.

    Returns:
        run, octave, density: a row per run and octave.
    """
    grid = np.asarray(octaves, np.float64)
    runs = counts["run"].unique(maintain_order=True)
    weight = (counts["count"] / counts.select(pl.col("count").sum().over("run"))["count"]).to_numpy()
    centre = np.log2(counts["scale"].to_numpy())
    density = np.zeros((len(runs), len(grid)))
    place = counts["run"].rle_id().to_numpy()
    kernel = np.exp(-(((grid - centre[:, None]) / BANDWIDTH) ** 2) / 2) / (BANDWIDTH * np.sqrt(2 * np.pi))
    np.add.at(density, place, weight[:, None] * kernel)
    return pl.DataFrame(
        {
            "run": runs.gather(np.repeat(np.arange(len(runs)), len(grid))),
            "octave": np.tile(grid, len(runs)),
            "density": density.reshape(-1),
        }
    )


def _sum_if_any(name: str) -> pl.Expr:
    values = pl.col(name).fill_nan(None)
    return pl.when(values.is_not_null().any()).then(values.sum())


def _collect(frame: pl.LazyFrame) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.ComputeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the cached rows of the logs cannot be read ({reason}); load them again") from error

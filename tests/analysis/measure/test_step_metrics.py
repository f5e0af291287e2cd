"""What single steps say, on a handful of rows."""

import math

import numpy as np
import polars as pl
import pytest

from hpclbfl.analysis.measure import step_metrics
from hpclbfl.runs.log.schema import DTYPES

RUNS = pl.Enum(["a", "b"])
NAN = float("nan")


def steps(*rows, lazy=True):
    """Rows of `steps`; floats that are not given are NaN, integers 0."""
    kinds = DTYPES["steps"]
    names = kinds.names or ()
    full = [{n: row.get(n, NAN if kinds[n].kind == "f" else 0) for n in names} | {"run": row["run"]} for row in rows]
    schema = {n: pl.Float64 if kinds[n].kind == "f" else pl.Int64 for n in names} | {"run": pl.String}
    frame = pl.DataFrame(full, schema=schema).with_columns(pl.col("run").cast(RUNS))
    return frame.lazy() if lazy else frame


def by_run(frame, *columns):
    return {row["run"]: tuple(row[c] for c in columns) for row in frame.rows(named=True)}


def test_totals_by_hand():
    # The last 10 % of 20 steps: 18 and 19; weighted by samples, the row without samples left out.
    rows = [
        {
            "run": "a",
            "step": s,
            "client": c,
            "local_batch_size": size,
            "loss": 10.0 * c + s,
            "num_samples": 40 * (s + 1),
        }
        for s in range(20)
        for c, size in ((0, 30), (1, 10), (2, 0))
    ]
    rows += [{"run": "b", "step": 0, "local_batch_size": 4, "loss": NAN, "num_samples": 4, "epoch": 0.5}]
    found = by_run(step_metrics.totals(steps(*rows)), "steps", "num_samples", "train_loss")
    assert found["a"] == (20, 800, pytest.approx((30 * 18 + 10 * 28 + 30 * 19 + 10 * 29) / 80))
    # A diverged loss stays NaN.
    assert found["b"][:2] == (1, 4)
    assert math.isnan(found["b"][2])


def test_time_shares_by_hand():
    common = {"t_data_s": 1.0, "t_compute_s": 6.0, "t_sync_s": 3.0, "t_step_s": 10.0}
    rows = [
        {"run": "a", **common, "t_wait_s": 2.0, "t_transfer_s": 1.0},
        {"run": "a", "step": 1, "t_data_s": 3.0, "t_compute_s": 2.0, "t_sync_s": 5.0, "t_step_s": 10.0},
        {"run": "a", "step": 2, "t_data_s": 99.0},
        {"run": "b", **common},
    ]
    columns = ("share_data", "share_compute", "share_sync", "share_wait", "share_transfer")
    assert by_run(step_metrics.time_shares(steps(*rows)), *columns) == {
        "a": (0.2, 0.4, 0.4, 0.1, 0.05),
        "b": (0.1, 0.6, 0.3, None, None),
    }


def test_client_times_by_hand():
    rows = [
        {"run": "a", "client": c, "step": s, "t_compute_s": c + s, "t_wait_s": 1.0 - c}
        for s in range(3)
        for c in range(2)
    ]
    found = step_metrics.client_times(steps(*rows, lazy=False))
    assert found.select("client", "t_compute_s", "t_wait_s", "t_data_s").rows() == [
        (0, 1.0, 1.0, None),
        (1, 2.0, 0.0, None),
    ]


def test_batch_changes():
    sizes = {0: [8, 8, 8, 4, 4, 4], 1: [8, 8, 8, 8, 8, 8]}
    rows = [
        {"run": run, "client": c, "step": s, "local_batch_size": b}
        for run in ("a", "b")
        for c, several in sizes.items()
        for s, b in enumerate(several)
    ]
    found = step_metrics.batch_changes(steps(*rows), ["a"])
    assert found.rows() == [("a", 0, 0, 8), ("a", 0, 3, 4), ("a", 0, 5, 4), ("a", 1, 0, 8), ("a", 1, 5, 8)]


def test_gradient_curves_of_a_shared_model():
    # Clients share the reduced gradient, |G| = s + 1.
    rows = [
        {
            "run": "a",
            "client": c,
            "step": s,
            "grad_sq_norm": (s + 1.0) ** 2,
            "local_grad_sq_norm": 99.0,
            "grad_change": NAN if s == 0 else float(s),
        }
        for s in range(6)
        for c in range(2)
    ]
    found = step_metrics.gradient_curves(steps(*rows), num_points=3)
    assert found.select("x", "norm", "cumulative_norm", "change").rows() == [
        (2.0, 1.5, 3.0, 1.0),
        (4.0, 3.5, 10.0, 2.5),
        (6.0, 5.5, 21.0, 4.5),
    ]
    # With room for every step each is a point of its own.
    assert step_metrics.gradient_curves(steps(*rows), num_points=60)["x"].to_list() == [1, 2, 3, 4, 5, 6]


def test_gradient_curves_of_local_training_are_means_over_clients():
    rows = [{"run": "a", "client": c, "step": 0, "local_grad_sq_norm": (2.0 * c + 1) ** 2} for c in range(2)]
    assert step_metrics.gradient_curves(steps(*rows))["norm"].to_list() == [2.0]


def test_gradient_curves_go_on_where_clients_begin_to_train_alone():
    # Post-local SGD: 3 shared steps with |G| = 5, then 3 in which client 0 has a norm of 1, client 1 of 3.
    shared, alone = [
        [{"run": "a", "client": c, "step": s, name: norms[c] ** 2} for s in stretch for c in range(2)]
        for name, stretch, norms in (
            ("grad_sq_norm", range(3), (5.0, 5.0)),
            ("local_grad_sq_norm", range(3, 6), (1.0, 3.0)),
        )
    ]
    found = step_metrics.gradient_curves(steps(*shared, *alone), num_points=3)
    assert found.select("x", "norm", "cumulative_norm").rows() == [
        (2.0, 5.0, 10.0),
        (4.0, 3.5, 17.0),
        (6.0, 2.0, 21.0),
    ]


def test_gradient_curves_leave_out_steps_without_a_finite_norm():
    # A loss scaler that was too high in step 0, and no measurement in step 3.
    norms = [math.inf, 2.0, 4.0, NAN, 6.0, 8.0]
    rows = [{"run": "a", "step": s, "grad_sq_norm": norm**2} for s, norm in enumerate(norms)]
    found = step_metrics.gradient_curves(steps(*rows), num_points=3)
    assert found.select("x", "norm", "cumulative_norm").rows() == [
        (2.0, 2.0, 2.0),
        (4.0, 4.0, 6.0),
        (6.0, 7.0, 20.0),
    ]


def test_scaled_share_by_hand():
    rows = [{"run": "a", "step": s, "scale": x} for s, x in enumerate([4.0, 1.0, 1.0, 1.0, NAN])]
    rows += [{"run": "b", "scale": 1.0}]
    counts = step_metrics.scale_counts(steps(*rows))
    assert counts.rows() == [("a", 1.0, 3), ("a", 4.0, 1), ("b", 1.0, 1)]
    assert by_run(step_metrics.scaled_share(counts), "share_scaled") == {"a": (0.25,), "b": (0.0,)}


def test_density_of_the_scale_factor():
    rows = [{"run": "a", "step": s, "scale": x} for s, x in enumerate([4.0, 1.0, 1.0, 1.0])]
    counts = step_metrics.scale_counts(steps(*rows))
    peak = 1 / (step_metrics.BANDWIDTH * math.sqrt(2 * math.pi))
    found = step_metrics.scale_density(counts, [0.0, 2.0])
    assert found["density"].to_list() == [pytest.approx(0.75 * peak), pytest.approx(0.25 * peak)]
    grid = np.linspace(-2, 4, 601)
    assert np.trapezoid(step_metrics.scale_density(counts, list(grid))["density"], grid) == pytest.approx(1.0)


def test_no_steps():
    empty = steps()
    assert all(len(f(empty)) == 0 for f in (step_metrics.totals, step_metrics.time_shares, step_metrics.client_times))
    counts = step_metrics.scale_counts(empty)
    assert len(step_metrics.scaled_share(counts)) == len(step_metrics.scale_density(counts, [0.0])) == 0
    assert len(step_metrics.gradient_curves(empty)) == len(step_metrics.batch_changes(empty, [])) == 0

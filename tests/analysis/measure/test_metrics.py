"""Measures from evaluations, on two curves small enough to work out by hand."""

import polars as pl
import pytest

from hpclbfl.analysis.measure import metrics

RUNS = pl.Enum(["a", "b", "c"])


@pytest.fixture
def evals():
    """a: 0.2, 0.6, 0.8 at samples 100, 200, 300; b half as fast, with larger steps; c has a train split alone."""
    rows = [
        # run, step, num_samples, elapsed_s, split, top1, loss
        ("a", 9, 100, 1.0, "test", 0.2, 2.0),
        ("a", 19, 200, 2.0, "test", 0.6, 1.0),
        ("a", 19, 200, 2.0, "train", 0.7, 0.8),
        ("a", 29, 300, 3.0, "test", 0.8, 0.6),
        ("b", 4, 100, 2.0, "test", 0.5, 1.5),
        ("b", 9, 200, 4.0, "test", 0.7, 1.2),
        ("b", 9, 200, 4.0, "train", 0.9, 0.2),
        ("b", 14, 400, 8.0, "test", 0.6, 1.3),
        ("b", 14, 400, 8.0, "train", 0.95, 0.1),
        ("c", 3, 50, 1.0, "train", 0.9, 0.1),
    ]
    frame = pl.DataFrame(
        rows, schema=["run", "step", "num_samples", "elapsed_s", "split", "top1", "loss"], orient="row"
    )
    return frame.with_columns(pl.col("run").cast(RUNS), top5=pl.col("top1"), epoch=pl.col("num_samples") / 100)


def by_run(frame, *columns):
    return {row["run"]: tuple(row[c] for c in columns) for row in frame.rows(named=True)}


@pytest.mark.parametrize(("axis", "point"), [("steps", 15.0), ("samples", 300.0), ("seconds", 3.0)])
def test_common_point(evals, axis, point):
    assert metrics.common_point(evals, axis) == point
    assert metrics.common_point(evals.clear(), axis) is None


@pytest.mark.parametrize(
    ("axis", "at", "expected"),
    [
        # Between two evaluations a line: a at step 15 is half way from 0.2 to 0.6.
        ("steps", 15, {"a": 0.4, "b": 0.6}),
        ("samples", 250, {"a": 0.7, "b": 0.675}),
        ("seconds", 3, {"a": 0.8, "b": 0.6}),
        # Never beyond a run's end or before its begin.
        ("samples", 350, {"a": None, "b": 0.625}),
        ("seconds", 1.5, {"a": 0.4, "b": None}),
    ],
)
def test_accuracy_at(evals, axis, at, expected):
    found = by_run(metrics.accuracy_at(evals, axis, at), "top1")
    assert found == {run: (None if v is None else pytest.approx(v),) for run, v in expected.items()}


def test_accuracy_at_several_points(evals):
    found = metrics.accuracy_at(evals, "samples", [100, 200])
    assert found.rows() == [("a", 100.0, 0.2), ("a", 200.0, 0.6), ("b", 100.0, 0.5), ("b", 200.0, 0.7)]
    assert found.schema["run"] == RUNS
    assert metrics.accuracy_at(evals.clear(), "steps", 5).is_empty()


def test_to_target(evals):
    found = by_run(metrics.to_target(evals, 0.6), "steps", "samples", "seconds")
    assert found == {"a": (20, 200, 2.0), "b": (10, 200, 4.0)}
    found = by_run(metrics.to_target(evals, 0.75), "steps", "samples", "seconds")
    assert found == {"a": (30, 300, 3.0), "b": (None, None, None)}


def test_final(evals):
    found = by_run(metrics.final(evals), "top1", "best_top1", "loss", "steps", "samples", "seconds", "samples_per_s")
    assert found == {"a": (0.8, 0.8, 0.6, 30, 300, 3.0, 100.0), "b": (0.6, 0.7, 1.3, 15, 400, 8.0, 50.0)}


def test_generalisation_gap_is_of_the_last_step_with_both_splits(evals):
    found = by_run(metrics.generalisation_gap(evals), "step", "gap_top1")
    assert found == {"a": (19, pytest.approx(0.1)), "b": (14, pytest.approx(0.35))}


def test_speed_up_against_one_client():
    table = pl.DataFrame(
        {
            "clients": [1, 1, 4, 8, 4],
            "b": [32, 32, 32, 32, 64],
            "samples_per_s": [90.0, 110.0, 300.0, 400.0, 700.0],
        }
    )
    found = metrics.speed_up(table, within=["b"])
    assert found["speed_up"].to_list() == [0.9, 1.1, 3.0, 4.0, None]
    assert found["efficiency"].to_list() == [0.9, 1.1, 0.75, 0.5, None]
    assert metrics.speed_up(table)["speed_up"].to_list()[-1] == 7.0


def test_speed_up_by_time_to_target():
    table = pl.DataFrame({"num_ranks": [1, 2, 4], "seconds": [100.0, 50.0, 40.0]}).with_columns(r=1 / pl.col("seconds"))
    found = metrics.speed_up(table, rate="r", size="num_ranks")
    assert found["speed_up"].to_list() == [1.0, 2.0, 2.5]
    assert found["efficiency"].to_list() == [1.0, 1.0, 0.625]

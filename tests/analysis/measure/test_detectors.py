"""How detectors compare, by hand: duty, firings, Cohen's kappa; and what a report shows of them."""

import json
import math

import numpy as np
import polars as pl
import pytest

from hpclbfl.analysis.measure import detectors
from hpclbfl.analysis.measure.plot_data import figure_runs
from hpclbfl.analysis.measure.report import make_report
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.detector_table import detectors_table
from hpclbfl.analysis.show.export import export
from hpclbfl.analysis.show.page import page
from hpclbfl.analysis.show.render import figure_rows, filled
from tests.analysis.conftest import print_folder, two_client_run
from tests.analysis.synthetic import make_run

NAN, INF = math.nan, math.inf


def kappa(first: str, second: str) -> float:
    """Of two courses, + where a detector fires."""
    return detectors.cohens_kappa(*(np.array([sign == "+" for sign in signs]) for signs in (first, second)))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("++--", "++--", 1.0),
        ("++--", "--++", -1.0),
        ("++--", "+-+-", 0.0),
        # They agree in 8 of 10; by chance in 0.4 * 0.4 + 0.6 * 0.6 = 0.52.
        ("++++------", "+++----+--", (0.8 - 0.52) / 0.48),
        # One that never fires tells nothing of the other.
        ("----", "++--", 0.0),
        ("----", "++++", 0.0),
        ("----", "----", NAN),
        ("++++", "++++", NAN),
        ("", "", NAN),
    ],
)
def test_kappa(first: str, second: str, expected: float) -> None:
    assert kappa(first, second) == pytest.approx(expected, nan_ok=True)
    assert kappa(second, first) == pytest.approx(expected, nan_ok=True)


COURSES = {
    # Fires in 3 of 5 known, 2 of 4 and none of 4.
    "a": [NAN, INF, 2.0, 0.1, 0.0, 2.0],
    "b": [NAN, NAN, 2.0, 0.1, 2.0, 0.2],
    "c": [NAN, NAN, 0.0, 0.0, 0.0, 0.0],
    "d": [NAN] * 6,
}


@pytest.fixture
def watched(tmp_path):
    """A run of two clients whose detectors take these courses; each fires from 0.5 on."""
    # Numbers of other components may sound alike.
    metrics = {"camp fires": [1.0] * 6, "sea change": [1.0] * 6}
    for name, course in COURSES.items():
        metrics[f"{name} change"] = course
        metrics[f"{name} fires"] = [NAN if math.isnan(change) else float(change >= 0.5) for change in course]
    two_client_run(tmp_path / "runs" / "one", num_steps=6, metrics=metrics)
    return tmp_path


def test_duties_and_agreements_by_hand(watched):
    frames = load(watched)
    found = detectors.firings(frames.metrics)
    arms = figure_runs(frames)
    rows = detectors.duties(found, arms).drop("arm").rows()
    assert rows == [("a", 5, 3, 0.6), ("b", 4, 2, 0.5), ("c", 4, 0, 0.0), ("d", 0, 0, None)]
    kappas = {(one, other): value for _, one, other, value in detectors.agreements(found, arms).iter_rows()}
    # Steps 2 to 5: a fires in 2 and 5, b in 2 and 4.
    assert kappas["a", "b"] == kappas["b", "a"] == 0.0
    assert kappas["a", "c"] == 0.0 and kappas["a", "d"] is None and len(kappas) == 12


def test_the_table(watched, capsys):
    frames = load(watched)
    (task,) = make_report(frames).arms
    table = detectors_table(frames, task)
    assert table.head == ("detector", "known", "firings", "duty (%)", "kappa (a)", "kappa (b)", "kappa (c)")
    assert table.rows == [
        ("a", "5", "3", "60.0", "", "", ""),
        ("b", "4", "2", "50.0", "0.00", "", ""),
        ("c", "4", "0", "0.0", "0.00", "0.00", ""),
        ("d", "0", "0", "-", "-", "-", "-"),
    ]
    for form in ("text", "markdown", "latex"):
        print_folder(watched, form=form)
        assert "Detectors of critical phases" in capsys.readouterr().out


def test_runs_without_detectors_have_no_table(tmp_path, capsys):
    two_client_run(tmp_path / "runs" / "one")
    print_folder(tmp_path)
    assert "Detectors" not in capsys.readouterr().out
    assert "critical_phases" not in figure_rows(load(tmp_path))


def test_the_raster_has_a_bar_for_each_stretch_that_is_alike(watched):
    frames = load(watched)
    rows = detectors.raster(frames, figure_runs(frames))
    bars = rows.drop_nulls("detector").select("detector", "begin", "end", "share").rows()
    assert [bar for bar in bars if bar[0] == "a"] == [
        ("a", 0, 1, None),
        ("a", 1, 3, 1.0),
        ("a", 3, 5, 0.0),
        ("a", 5, 6, 1.0),
    ]
    assert [bar for bar in bars if bar[0] == "d"] == [("d", 0, 6, None)]
    # An infinite change is in no figure, and no obstacle to any reader.
    json.dumps(filled("critical_phases", rows, frames.runs["arm"].cast(pl.String).to_list()), allow_nan=False)
    page(make_report(frames))
    for form in ("csv", "parquet"):
        export(frames, watched / form, form)
    again = pl.read_parquet(watched / "parquet" / "metrics.parquet")
    assert again.filter(pl.col("name") == "a change")["value"].to_list()[1] == INF


def test_long_runs_are_drawn_in_stretches(tmp_path):
    make_run(tmp_path / "runs" / "long", num_steps=1000, watched=True)
    frames = load(tmp_path)
    rows = detectors.raster(frames, figure_runs(frames))
    assert 100 < len(rows.drop_nulls("norm")) <= detectors.STRETCHES
    bars = rows.drop_nulls("detector")
    assert len(bars) <= 2 * detectors.STRETCHES and bars["end"].max() == 1000
    own = bars.filter(pl.col("detector") == "squared_norm")
    steps = frames.steps.filter(pl.col("client") == 0).collect()
    fired = (own["share"].fill_null(0) * (own["end"] - own["begin"])).sum()
    # The first step, whose change is not known, shares a stretch with others.
    assert fired == pytest.approx((steps["grad_change"].fill_nan(0) >= 0.5).sum(), abs=1)

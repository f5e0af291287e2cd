"""Trainings of a teacher and its curves, from rows whose measures are worked out by hand."""

import polars as pl
import pytest

from hpclbfl.analysis.measure.plot_data import figure_runs
from hpclbfl.analysis.measure.report import make_report
from hpclbfl.analysis.measure.teaching import teacher_curves, trainings
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.teacher_table import teachers_table
from tests.analysis.synthetic import make_run


def test_trainings_by_hand():
    rows = [
        *(("a", 0, "teacher seconds", 2.0), ("a", 1, "teacher seconds", 1.0), ("a", 1, "teacher error", 0.5)),
        *(("a", 0, "teacher energy", 0.75), ("a", 1, "teacher energy", 0.25)),
        *(("a", 0, "teacher noise", 3.0), ("a", 1, "teacher noise", 5.0), ("a", 1, "test top1", 9.0)),
        *(("b", 0, "teacher seconds", 4.0), ("b", 0, "teacher noise", float("nan"))),
        ("c", 0, "test top1", 9.0),
    ]
    frame = pl.DataFrame(rows, schema=["run", "step", "name", "value"], orient="row")
    assert trainings(frame).rows(named=True) == [
        {"run": "a", "training_steps": 2, "energy": 0.5, "error": 0.5, "noise": 4.0, "seconds": 3.0},
        {"run": "b", "training_steps": 1, "energy": None, "error": None, "noise": None, "seconds": 4.0},
    ]


def test_only_runs_with_a_teacher_have_a_table_and_a_figure(tmp_path):
    make_run(tmp_path / "plain", 0, 1, num_steps=30, evaluate_every=10)
    frames = load(tmp_path)
    (task,) = make_report(frames).arms
    assert not len(teacher_curves(frames, figure_runs(frames))) and not teachers_table(frames, task).rows
    make_run(tmp_path / "taught", 0, 2, num_steps=30, evaluate_every=10, taught=True)
    frames = load(tmp_path)
    curves = teacher_curves(frames, figure_runs(frames))
    assert curves["label"].unique().to_list() == ["X=2 (n=1)"]
    captured = curves.filter(panel="captured").sort("x")
    assert captured["x"].to_list() == [2.0, 26.0, 27.0]
    errors = frames.metrics.filter(name="teacher error").sort("step")["value"]
    assert captured["value"].to_list() == pytest.approx((1 - errors).to_list())
    (task,) = make_report(frames).arms
    ((arm, steps, energy, *_),) = teachers_table(frames, task).rows
    assert (arm, steps, energy) == ("X=2", "4", "75")

"""The teachers (Eq. 5) of a report, as a table."""

from __future__ import annotations

import polars as pl

from hpclbfl.analysis.measure.arm_summary import ArmSummary
from hpclbfl.analysis.measure.plot_data import figure_runs
from hpclbfl.analysis.measure.teaching import trainings
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.show.markup import TextTable
from hpclbfl.analysis.show.tables import number

_NOTE = (
    "Means over an arm's runs. Training steps: in which the teacher was trained; energy: share of the clients' "
    "residuals that their encoding keeps; held-out error: squared error on gradients before they are learnt, relative "
    "to their squared norm; seconds: of all training steps of a run, besides what steps take anyway."
)
_COLUMNS = {
    "training steps": ("training_steps", 1.0),
    "energy (%)": ("energy", 100.0),
    "held-out error": ("error", 1.0),
    "|A(G) - G|² / |G|²": ("noise", 1.0),
    "seconds": ("seconds", 1.0),
}


def teachers_table(frames: Frames, task: ArmSummary) -> TextTable:
    """How each arm's teacher was trained, and how much it changes the gradient; without rows if none has one."""
    arms = figure_runs(frames).filter(pl.col("arm").cast(pl.String).is_in(task.labels)).select("run", "arm")
    names = [name for name, _ in _COLUMNS.values()]
    means = arms.join(trainings(frames.metrics), on="run").group_by("arm").agg(pl.col(names).mean())
    found = {str(row["arm"]): row for row in means.iter_rows(named=True)}
    rows, marks = [], []
    for place, label in enumerate(task.labels):
        if label in found:
            values = ((found[label][name], factor) for name, factor in _COLUMNS.values())
            rows.append((label, *(number(None if value is None else factor * value) for value, factor in values)))
            marks.append({"arm": str(place)})
    title = f"{task.title}: teachers" if task.title else "Teachers"
    return TextTable(title, ("arm", *_COLUMNS), rows, frozenset({"arm"}), (_NOTE,) if rows else (), marks)

"""How often the watched detectors of critical phases fire, and how far they agree, as a table."""

from __future__ import annotations

import polars as pl

from hpclbfl.analysis.measure import detectors
from hpclbfl.analysis.measure.arm_summary import ArmSummary
from hpclbfl.analysis.measure.plot_data import figure_runs
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.show.markup import TextTable

_NOTE = (
    "known: steps whose change is known, of all runs of the arm, and in local training of all clients; duty: share of "
    "them in which the detector fires; kappa: Cohen's, of the steps that both know: 1 where two always agree, 0 where "
    "they agree as often as by chance; a dash: both fire always, or never."
)


def detectors_table(frames: Frames, task: ArmSummary) -> TextTable:
    """Duty and firings of each watched detector, and its agreement with each other one, for the arms of a task.

    Without rows if none of its runs watches any. Rows are marked with their arms' positions in the task.
    """
    found = detectors.firings(frames.metrics)
    arms = figure_runs(frames).filter(pl.col("arm").cast(pl.String).is_in(task.labels))
    duties = detectors.duties(found, arms)
    names = duties.sort("detector")["detector"].unique(maintain_order=True).to_list()
    kappas = {
        (str(arm), name, other): kappa for arm, name, other, kappa in detectors.agreements(found, arms).iter_rows()
    }
    lines, marks = [], []
    for row in duties.iter_rows(named=True):
        arm, name = str(row["arm"]), row["detector"]
        duty = "-" if row["duty"] is None else f"{100 * row['duty']:.1f}"
        # Each pair once: below the diagonal.
        agreed = [_kappa(kappas.get((arm, name, other))) if other < name else "" for other in names[:-1]]
        lines.append((arm, name, f"{row['known']:,}", f"{row['firings']:,}", duty, *agreed))
        marks.append({"arm": str(task.labels.index(arm))})
    head = ("arm", "detector", "known", "firings", "duty (%)", *(f"kappa ({name})" for name in names[:-1]))
    if len(task.labels) == 1:
        head, lines = head[1:], [line[1:] for line in lines]
    title = f"{task.title}: detectors of critical phases" if task.title else "Detectors of critical phases"
    return TextTable(title, head, lines, frozenset({"arm", "detector"}), (_NOTE,) if lines else (), marks)


def _kappa(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("-", "−")

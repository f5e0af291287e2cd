"""What clients send under compression, as a table."""

from __future__ import annotations

import polars as pl

from hpclbfl.analysis.measure.arm_summary import ArmSummary
from hpclbfl.analysis.measure.plot_data import figure_runs
from hpclbfl.analysis.measure.traffic import traffic
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.show.markup import TextTable

_NOTE = (
    "MB: sent by rank 0; of all: against the same reductions without compression; transfer: moving and summing, "
    "without waiting for slower ranks; lost: phi = |p - C(p)|² / |p|² of what clients had to send, mean over "
    "reductions; level: the ratios, or ranks, that a rule chose."
)
_COLUMNS = {
    "MB/step": ("step_mb", 1.0),
    "MB": ("sent_mb", 1.0),
    "of all (%)": ("share", 100.0),
    "transfer (ms/step)": ("transfer_s", 1e3),
    "step (ms)": ("step_s", 1e3),
    "lost (%)": ("error", 100.0),
}


def traffic_table(frames: Frames, task: ArmSummary) -> TextTable:
    """What a rank sends in each arm, and how long that takes; without rows if none of its runs was compressed."""
    arms = figure_runs(frames).filter(pl.col("arm").cast(pl.String).is_in(task.labels))
    found = {str(row["arm"]): row for row in traffic(frames, arms).iter_rows(named=True)}
    columns: dict[str, list[str]] = {title: [] for title in ("arm", *_COLUMNS, "level")}
    marks = []
    for place, label in enumerate(task.labels):
        row = found.get(label)
        if row is None:
            continue
        columns["arm"].append(label)
        for title, (name, factor) in _COLUMNS.items():
            columns[title].append(_number(row[name], factor))
        columns["level"].append(_level(row["level_low"], row["level_high"]))
        marks.append({"arm": str(place)})
    if set(columns["level"]) <= {"-"}:
        del columns["level"]
    lines = list(zip(*columns.values(), strict=True))
    title = f"{task.title}: what clients send" if task.title else "What clients send"
    return TextTable(title, tuple(columns), lines, frozenset({"arm"}), (_NOTE,) if lines else (), marks)


def _level(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _number(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.3g}"

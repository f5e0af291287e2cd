"""A report on a folder of runs, computed: runs, arms, and what went wrong. `printing` and `page` show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hpclbfl.analysis import eigenvalues
from hpclbfl.analysis.arm_summary import ArmSummary, summarise_arms
from hpclbfl.analysis.frames import Frames
from hpclbfl.analysis.load import load
from hpclbfl.analysis.metrics import AXES, to_target
from hpclbfl.analysis.summary import summarise
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import DataError
from hpclbfl.core.text import printable

logger = Diagnostics(__name__)


@dataclass(frozen=True)
class Report:
    """A folder of runs, summarised."""

    frames: Frames
    runs: pl.DataFrame
    """One row per run, see `summary.summarise`."""
    arms: list[ArmSummary]
    """One summary per task."""


def make_report(frames: Frames, baseline: str | None = None, target: float | None = None) -> Report:
    """Summarise runs and their arms; for `baseline`, `target` and errors see `arm_summary.summarise_arms`."""
    runs = summarise(frames)
    return Report(frames, runs, summarise_arms(frames, runs, baseline, target))


def load_some(directory: str | Path) -> Frames:
    """The runs at or below a folder; `Frames.notes` go to stderr.

    Raises:
        DataError: the folder is not there, or holds no run.
    """
    frames = load(directory)
    for note in frames.notes:
        logger.warning(note)
    if frames.runs.is_empty():
        raise DataError(f"{directory}: holds no run; a run folder has a config.yaml, 'hpclbfl train' makes one")
    return frames


def summary_rows(report: Report) -> list[dict[str, Any]]:
    """One row per run, for machines: the columns of `summary.summarise`, `ranks` for num_ranks, and `problems`.

    With a target also target_steps, target_samples, target_seconds of the run; if the arms have a speed-up, speed_up
    and efficiency of its arm. Accuracies and shares are numbers from 0 to 1, times seconds; None: not measured.
    """
    runs, heads = report.runs, report.arms
    texts = problem_lines(report.frames)
    target = next((head.target for head in heads if head.target is not None), None)
    if target is not None:
        took = to_target(report.frames.evals, target).rename({axis: f"target_{axis}" for axis in AXES})
        runs = runs.join(took, on="run", how="left", maintain_order="left")
    scaled = [head.arms.select("arm", "speed_up", "efficiency") for head in heads if head.size is not None]
    if scaled:
        runs = runs.join(pl.concat(scaled), on="arm", how="left", maintain_order="left")
    rows = runs.rename({"num_ranks": "ranks"}).with_columns(steps=pl.col("steps").fill_null(0))
    return [{**row, "problems": texts.get(row["run"], [])} for row in rows.rows(named=True)]


def problem_lines(frames: Frames) -> dict[str, list[str]]:
    """By run, what is wrong with it, one line each: why it failed, files that are torn or missing, no attempt."""
    lines: dict[str, list[str]] = {}
    for row in frames.runs.rows(named=True):
        if row["state"] == "failed":
            lines.setdefault(row["run"], []).append(f"failed: {row['error'] or 'no reason given'}")
    for row in frames.problems.rows(named=True):
        has_rows = not row["path"].endswith(".json")
        harmless = " (a later attempt trained its steps again)" if has_rows and not row["rows_lost"] else ""
        lines.setdefault(row["run"], []).append(f"{frames.root / row['path']}: {row['reason']}{harmless}")
    for run, path, reason in eigenvalues.read_all(frames)[1]:
        lines.setdefault(run, []).append(f"{frames.root / path}: {reason}")
    for row in frames.runs.rows(named=True):
        if not row["num_attempts"]:
            lines.setdefault(row["run"], []).append("has no attempt yet")
    return {run: list(map(printable, texts)) for run, texts in lines.items()}

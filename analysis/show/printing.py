"""What `hpclbfl report DIR` prints: tables for a terminal, as Markdown or as LaTeX, or one row per run as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

import polars as pl

from hpclbfl.analysis.measure.arm_summary import ArmSummary
from hpclbfl.analysis.measure.report import Report, problem_lines, summary_rows
from hpclbfl.analysis.read.scan import unstarted
from hpclbfl.analysis.show.detector_table import detectors_table
from hpclbfl.analysis.show.markup import TextTable, to_latex, to_markdown, to_rich
from hpclbfl.analysis.show.tables import arms_table, comparison_table, is_same, runs_table
from hpclbfl.analysis.show.teacher_table import teachers_table
from hpclbfl.analysis.show.traffic_table import traffic_table
from hpclbfl.core.console import make_console

WIDTH = 100
"""Width of notes below tables, columns of text."""
MANY_RUNS = 60
"""With more runs, and several seeds, the terminal lists only the runs that are not complete."""
Format = Literal["text", "markdown", "latex"]


def print_report(report: Report, form: Format = "text") -> None:
    """Print a report to stdout."""
    if form == "text":
        _print_text(report)
    else:
        tables = [table for task in report.arms for table in (arms_table(task), comparison_table(task))]
        print_tables([*tables, *_extra(report)], form)


def print_json(report: Report) -> None:
    """Print `report.summary_rows` to stdout."""
    sys.stdout.write(json.dumps([_plain(row) for row in summary_rows(report)], indent=2) + "\n")


def print_tables(tables: Sequence[TextTable], form: Format = "text") -> None:
    """Print tables to stdout, each with its notes; of a table without rows the notes only."""
    if form != "text":
        sys.stdout.write("\n".join(map(to_markdown if form == "markdown" else to_latex, tables)))
        return
    console = make_console()
    for table in tables:
        if table.rows:
            console.print(to_rich(table))
        for note in table.notes:
            console.print(note, width=WIDTH)
        console.print()


def _print_text(report: Report) -> None:
    frames, runs, tasks = report.frames, report.runs, report.arms
    console = make_console()
    has_seeds = any((task.arms["n"] > 1).any() for task in tasks)
    if any(map(_says_more, tasks)):
        print_tables([table for task in tasks for table in (arms_table(task, brief=True), comparison_table(task))])
    listed = runs
    if has_seeds and len(runs) > MANY_RUNS:
        listed = runs.filter(~pl.col("complete"))
    root = frames.root
    if len(listed):
        console.print(to_rich(runs_table(listed, f"Runs in {root}")))
    print_tables(_extra(report))
    if len(listed) < len(runs):
        console.print(f"{len(runs) - len(listed)} complete runs are not listed; --json lists all")
    is_one_run = (root / "config.yaml").exists()
    console.print(f"logs: {root if is_one_run else root / '<run>'}/attempts/*/rank*.h5", soft_wrap=True)
    for parts in frames.runs["own_parts"].drop_nulls().unique(maintain_order=True):
        console.print(f"own parts: {parts}", soft_wrap=True)
    waiting, why_not = unstarted(root)
    if waiting:
        console.print(f"{len(waiting)} run{'s' if len(waiting) > 1 else ''} of the sweep: not started")
    if why_not:
        console.print(why_not, soft_wrap=True)
    for name, lines in problem_lines(frames).items():
        for line in lines:
            console.print(f"{name}: {line}", soft_wrap=True)


def _extra(report: Report) -> list[TextTable]:
    """What clients send, the watched detectors, and the teachers, of tasks whose runs have any."""
    makers = (traffic_table, detectors_table, teachers_table)
    tables = [make(report.frames, task) for make in makers for task in report.arms]
    return [table for table in tables if table.rows]


def _says_more(task: ArmSummary) -> bool:
    """Whether the table of arms says more than that of runs."""
    if (task.arms["n"] > 1).any() or task.target is not None or task.size is not None:
        return True
    axes = [axis for axis in ("steps", "samples") if axis in task.points]
    return not all(is_same(task.arms, f"at_{axis}", "top1") for axis in axes)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}

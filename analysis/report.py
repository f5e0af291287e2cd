"""What `hpclbfl report DIR` prints: the tables to a terminal, as Markdown or LaTeX, or one row per run for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from hpclbfl.analysis import eigenvalues
from hpclbfl.analysis.frames import Frames
from hpclbfl.analysis.headline import ArmSummary, headlines
from hpclbfl.analysis.load import load
from hpclbfl.analysis.markup import to_latex, to_markdown, to_rich
from hpclbfl.analysis.metrics import AXES, to_target
from hpclbfl.analysis.scan import unstarted
from hpclbfl.analysis.summary import summarise
from hpclbfl.analysis.tables import arms_table, comparison_table, is_same, runs_table
from hpclbfl.core.console import make_console
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import DataError
from hpclbfl.core.text import printable

logger = Diagnostics(__name__)

WIDTH = 100
"""Columns of text that sentences take at most."""
MANY_RUNS = 60
"""Beyond it, where arms have several seeds, the terminal lists only those runs that are not complete."""
Format = Literal["text", "markdown", "latex"]


def print_report(
    directory: str | Path,
    as_json: bool = False,
    form: Format = "text",
    baseline: str | None = None,
    target: float | None = None,
) -> tuple[Frames, pl.DataFrame, list[ArmSummary]]:
    """Print the runs at or below a folder to stdout; returns what was loaded and computed for it.

    Raises:
        DataError: the folder is not there, or holds no run.
        ConfigError: no arm has the baseline's label.
    """
    frames = load_some(directory)
    runs = summarise(frames)
    heads = headlines(frames, runs, baseline, target)
    if as_json:
        sys.stdout.write(json.dumps([_plain(row) for row in summary_rows(frames, runs, heads)], indent=2) + "\n")
    elif form == "text":
        _print_text(frames, runs, heads)
    else:
        render = to_markdown if form == "markdown" else to_latex
        tables = [table for head in heads for table in (arms_table(head), comparison_table(head))]
        sys.stdout.write("\n".join(map(render, tables)))
    return frames, runs, heads


def load_some(directory: str | Path) -> Frames:
    """The runs at or below a folder; what else is to be known of it (`Frames.notes`) goes to stderr.

    Raises:
        DataError: the folder is not there, or holds no run.
    """
    frames = load(directory)
    for note in frames.notes:
        logger.warning(note)
    if frames.runs.is_empty():
        raise DataError(f"{directory}: holds no run; a run folder has a config.yaml, 'hpclbfl train' makes one")
    return frames


def summary_rows(frames: Frames, runs: pl.DataFrame, heads: Sequence[ArmSummary] = ()) -> list[dict[str, Any]]:
    """One row per run, for machines: the columns of `summary.summarise`, `ranks` for num_ranks, and `problems`.

    With headlines that have a target: target_steps, target_samples, target_seconds of the run; with those that have a
    speed-up: speed_up and efficiency of its arm. Accuracies, shares and epochs are plain numbers (0 to 1), times
    seconds; None: not measured.
    """
    texts = problem_lines(frames)
    target = next((head.target for head in heads if head.target is not None), None)
    if target is not None:
        took = to_target(frames.evals, target).rename({axis: f"target_{axis}" for axis in AXES})
        runs = runs.join(took, on="run", how="left", maintain_order="left")
    scaled = [head.arms.select("arm", "speed_up", "efficiency") for head in heads if head.size is not None]
    if scaled:
        runs = runs.join(pl.concat(scaled), on="arm", how="left", maintain_order="left")
    rows = runs.rename({"num_ranks": "ranks"}).with_columns(steps=pl.col("steps").fill_null(0))
    return [{**row, "problems": texts.get(row["run"], [])} for row in rows.rows(named=True)]


def problem_lines(frames: Frames) -> dict[str, list[str]]:
    """What is wrong with which run, one line each: why it failed, files that are torn or missing, no attempt."""
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
    return {run: list(map(printable, said)) for run, said in lines.items()}


def _print_text(frames: Frames, runs: pl.DataFrame, heads: Sequence[ArmSummary]) -> None:
    console = make_console()
    has_seeds = any((head.arms["n"] > 1).any() for head in heads)
    for head in heads if any(map(_says_more, heads)) else ():
        for table in (arms_table(head, brief=True), comparison_table(head)):
            if table.rows:
                console.print(to_rich(table))
            for note in table.notes:
                console.print(note, width=WIDTH)
            console.print()
    listed = runs
    if has_seeds and len(runs) > MANY_RUNS:
        listed = runs.filter(~pl.col("complete"))
    root = frames.root
    if len(listed):
        console.print(to_rich(runs_table(listed, f"Runs in {root}")))
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


def _says_more(head: ArmSummary) -> bool:
    """Whether arms say more than their single runs do."""
    if (head.arms["n"] > 1).any() or head.target is not None or head.size is not None:
        return True
    axes = [axis for axis in ("steps", "samples") if axis in head.points]
    return not all(is_same(head.arms, f"at_{axis}", "top1") for axis in axes)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}

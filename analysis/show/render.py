"""Figures as PNG, SVG and PDF files, without a browser or a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from hpclbfl.analysis.measure import detectors, plot_data
from hpclbfl.analysis.measure.arm_summary import ranked_arms
from hpclbfl.analysis.measure.metrics import AXES
from hpclbfl.analysis.measure.report import Report
from hpclbfl.analysis.measure.teaching import teacher_curves
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.show.convert import convert_all
from hpclbfl.analysis.show.figures import definition
from hpclbfl.analysis.show.style import MAX_ARMS, PARTS, ROWS, fill
from hpclbfl.core.files import write_output

FORMATS = ("png", "svg", "pdf")
VEGALITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""Version of Vega-Lite that altair writes definitions for."""
_MAX_ROWS = 40
_MAX_ENDING = 80
"""Characters of a task's title in the name of a file, at most."""
_BY_ROW = ("final_accuracy", "time_shares")


def figure_rows(frames: Frames) -> dict[str, pl.DataFrame]:
    """The rows of every figure by its name (see `plot_data`); figures without rows are left out."""
    runs = plot_data.figure_runs(frames)
    rows = {
        **{f"learning_curves_{axis}": plot_data.learning_curves(frames, runs, axis) for axis in AXES},
        "final_accuracy": plot_data.final_accuracy(frames, runs),
        "sharpness": plot_data.sharpness_points(frames, runs),
        "gradient_norm": plot_data.gradients(frames, runs),
        "critical_phases": detectors.raster(frames, runs),
        "teacher": teacher_curves(frames, runs),
        "scale_factor": plot_data.scale_factor(frames, runs),
        "time_shares": plot_data.time_shares(frames, runs),
        "batches_and_waits": pl.concat(
            [plot_data.batch_sizes(frames, runs), plot_data.client_times(frames, runs)], how="diagonal"
        ),
    }
    return {name: table for name, table in rows.items() if len(table)}


def max_arms(name: str) -> int:
    """How many arms a figure can show: as many as it has rows, or as there are colours."""
    return _MAX_ROWS if name in _BY_ROW else MAX_ARMS


def filled(name: str, table: pl.DataFrame, arms: Sequence[str]) -> dict[str, Any]:
    """A figure's definition with the rows of the given arms (labels) over all seeds."""
    rows = table.filter(pl.col("seed").is_null() & pl.col("arm").cast(pl.String).is_in(list(arms)))
    spec = definition(name, parts_of(table))
    found: dict[str, Any] = fill(spec, [_plain(row) for row in rows.iter_rows(named=True)], arms)
    return found


def parts_of(table: pl.DataFrame) -> tuple[str, ...]:
    """The parts of a step's time that a table has, in their order."""
    present = set(table["part"].drop_nulls()) if "part" in table.columns else set()
    return tuple(part for part in PARTS if part in present)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Without nulls and numbers that are not finite."""
    return {k: v for k, v in row.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))}


def write_figures(report: Report, folder: Path, kinds: Sequence[str] = FORMATS) -> Iterator[tuple[Path, str]]:
    """Write every figure that has data, over all seeds, into a folder; existing files are replaced.

    With several tasks each has figures of its own, such as `learning_curves_steps-resnet50.png`.

    Yields:
        Each file, and what was left out of it (empty: nothing).

    Raises:
        EnvironmentFault: a file cannot be written, or a process that draws has died.
    """
    endings = _endings([task.title for task in report.arms])
    wanted = []
    for name, table in figure_rows(report.frames).items():
        for task in report.arms:
            chosen = ranked_arms(task, max_arms(name))
            total = table.filter(pl.col("arm").cast(pl.String).is_in(task.labels))["arm"].n_unique()
            left_out = f"{len(chosen)} of {total} arms, the most accurate" if total > len(chosen) else ""
            spec = filled(name, table, chosen)
            if spec["datasets"][ROWS]:
                wanted.append((f"{name}{endings[task.title]}", left_out, spec))
    pictures = convert_all((spec for *_, spec in wanted), VEGALITE, kinds)
    for (name, left_out, _), contents in zip(wanted, pictures, strict=True):
        for kind, content in zip(kinds, contents, strict=True):
            path = folder / f"{name}.{kind}"
            write_output(path, content)
            yield path, left_out


def _endings(titles: Sequence[str]) -> dict[str, str]:
    """Endings of the figures' names by task: short, and no two equal."""
    found: dict[str, str] = {}
    for title in titles:
        plain = re.sub(r"[^a-z0-9]+", "-", f"-{title}".lower())[:_MAX_ENDING].rstrip("-")
        ending, number = plain, 1
        while ending in found.values():
            number += 1
            ending = f"{plain}-{number}"
        found[title] = ending
    return found

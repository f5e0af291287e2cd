"""One figure of one or more runs, as a chart for a notebook or as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt

from hpclbfl.analysis.measure.arm_summary import ranked_arms, summarise_arms
from hpclbfl.analysis.measure.report import summarise
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.show.convert import converted
from hpclbfl.analysis.show.figures import FIGURES
from hpclbfl.analysis.show.render import FORMATS, VEGALITE, figure_rows, filled, max_arms
from hpclbfl.analysis.show.style import ROWS
from hpclbfl.api.runs import Result, load_runs
from hpclbfl.config.validation import suggestion
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.files import write_output
from hpclbfl.core.text import shown


def plot(
    runs: Result | Frames | str | Path,
    figure: str = "learning_curves_steps",
    file: str | Path | None = None,
    task: str | None = None,
) -> Any:
    """Draw one of the figures of `hpclbfl report`.

    Args:
        runs: a run, the frames of many, or the path of a folder that holds them.
        figure: learning_curves_steps, learning_curves_samples, learning_curves_seconds, final_accuracy, sharpness,
            gradient_norm, scale_factor, teacher, time_shares or batches_and_waits.
        file: also write it there, .png, .svg or .pdf.
        task: title of the net and data to draw, where there are several.

    Returns:
        An altair chart; a notebook displays it as the last value of a cell.

    Raises:
        ConfigError: no such figure, task or kind of file.
        DataError: the runs have no data for it.
        EnvironmentFault: the file cannot be written.
    """
    if figure not in FIGURES:
        raise ConfigError(
            f"plot: {shown(figure)} is no figure: {suggestion(str(figure), FIGURES)}there are {', '.join(FIGURES)}"
        )
    path = None if file is None else Path(file)
    if path is not None and path.suffix.removeprefix(".") not in FORMATS:
        raise ConfigError(f"{path}: a figure is a {', '.join(f'.{kind}' for kind in FORMATS)} file")
    frames = runs if isinstance(runs, Frames) else runs.frames if isinstance(runs, Result) else load_runs(runs)
    spec = _definition(frames, figure, task)
    if path is not None:
        write_output(path, converted(spec, VEGALITE, [path.suffix.removeprefix(".")])[0])
    return alt.Chart.from_dict(spec)


def _definition(frames: Frames, figure: str, task: str | None) -> dict[str, Any]:
    summaries = summarise_arms(frames, summarise(frames))
    titles = [summary.title for summary in summaries]
    if task is not None and task not in titles:
        raise ConfigError(f"plot: no runs of the task {shown(task)}; there are: {'; '.join(titles)}")
    if task is None and len(summaries) > 1:
        raise ConfigError(f"plot: the runs are of several tasks, give task=...: {'; '.join(titles)}")
    table = figure_rows(frames).get(figure)
    chosen = next((summary for summary in summaries if task in (None, summary.title)), None)
    if table is not None and chosen is not None:
        spec = filled(figure, table, ranked_arms(chosen, max_arms(figure)))
        if spec["datasets"][ROWS]:
            return spec
    raise DataError(f"{frames.root}: holds nothing to draw for {figure}")

"""The arms of each task in one row each, as tables and pages show them.

A task is a model on a data set: arms of one task are compared with each other, arms of different tasks are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from hpclbfl.analysis.measure import metrics, stats
from hpclbfl.analysis.measure.metrics import METRIC
from hpclbfl.analysis.read.arms import DATA_KEY, data_key, data_titles, differing_keys
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import printable

_MEASURES = ("best_top1", "gap_top1", "share_scaled", "samples_per_s", "elapsed_s")
_UNBOUNDED = ("loss", "gap_top1", "samples_per_s", "elapsed_s")
_MAX_TITLE = 200
"""Characters of a task's title."""
ALONE = "tasks of one arm each"
"""Title under which tasks of a single arm, which has nothing to be compared with, are put together."""
MAX_ALONE = 8
"""As many of them are still shown one by one."""


@dataclass(frozen=True)
class ArmSummary:
    """Arms of one task side by side; accuracies are means over seeds of complete runs, shares (0 to 1)."""

    title: str
    """Of the task: model and data; empty if there is only one task."""
    arms: pl.DataFrame
    """arm, runs, complete (of them), n (seeds that count), and for each measure m of top1, loss, at_steps, at_samples,
    at_seconds, best_top1, gap_top1, share_scaled, samples_per_s, elapsed_s and of what a loss reports (`metric NAME`,
    see `report.summarise`): m, m_low, m_high; with a target also
    target_steps, target_samples, target_seconds (means over the seeds that reached it) and reached (their number); if
    there are arms of one client (else: one rank) and of several, speed_up and efficiency in samples per second. Null:
    not measured, or no interval; at_* also if not every run of the arm had been evaluated by then."""
    points: dict[metrics.Axis, float]
    """Where at_steps, at_samples and at_seconds were taken: the farthest points that all complete runs reach."""
    baseline: str | None
    """The arm that the others are compared with; None if there is only one arm."""
    comparisons: dict[str, pl.DataFrame]
    """By measure (at_steps, at_samples, at_seconds, top1): every arm against the baseline, see `stats.compare` and
    `stats.judged`."""
    target: float | None
    size: str | None = None
    """What speed_up is relative to: clients or num_ranks; None unless some arm has one of them and another has more."""

    @property
    def labels(self) -> list[str]:
        """Of the arms."""
        found: list[str] = self.arms["arm"].cast(pl.String).to_list()
        return found


def summarise_arms(
    frames: Frames, summary: pl.DataFrame, baseline: str | None = None, target: float | None = None
) -> list[ArmSummary]:
    """Arms side by side, one summary per task (see `arm_tasks`).

    Args:
        summary: of the frames, from `report.summarise`.
        baseline: label of the arm that all others are compared with, whatever their task, in one summary; None: in
            each task the first arm that has a complete run.
        target: accuracy (0 to 1) to be reached.

    Raises:
        ConfigError: no arm has that label.
    """
    tasks: Mapping[str, list[str]] = with_few_alone(arm_tasks(frames.runs))
    if baseline is not None:
        labels = [label for members in tasks.values() for label in members]
        if baseline not in labels:
            raise ConfigError(f"--baseline: no arm is called '{baseline}'; there are: {'; '.join(labels)}")
        tasks = {"": labels}
    found = []
    for title, members in tasks.items():
        is_member = pl.col("arm").cast(pl.String).is_in(members)
        runs, rows = frames.runs.filter(is_member), summary.filter(is_member)
        found.append(_summarise_task(title, runs, frames.evals, rows, baseline, target))
    return found


def arm_tasks(runs: pl.DataFrame) -> dict[str, list[str]]:
    """Titles of the tasks with the labels of their arms: `resnet50, cifar10`, without what all tasks share.

    If no model has two arms, the model is what was varied: tasks then differ in their data only.

    Args:
        runs: the frame `runs` of `frames.Frames`.

    Returns:
        In the order of the arms; at least one task, whose title is empty if it is the only one.
    """
    model = pl.col("model.name").cast(pl.String) if "model.name" in runs.columns else pl.lit(None, pl.String)
    arms = runs.drop_nulls("arm").unique("arm", keep="first", maintain_order=True).sort("arm")
    arms = arms.select(pl.col("arm").cast(pl.String), data_key(runs), model=model)
    if arms.is_empty():
        return {"": []}
    if not arms.select(pl.struct(DATA_KEY, "model").is_duplicated().any()).item():
        arms = arms.with_columns(model=pl.lit(None, pl.String))
    titles = data_titles(runs)
    several = [name for name in ("model", DATA_KEY) if arms[name].n_unique() > 1]
    tasks: dict[str, list[str]] = {}
    for row in arms.rows(named=True):
        parts = [str(row[name]) if name == "model" else titles[row[name]] for name in several]
        tasks.setdefault(printable(", ".join(parts), _MAX_TITLE), []).append(row["arm"])
    return tasks


def with_few_alone(tasks: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Tasks; if more than MAX_ALONE have a single arm, these are put together under ALONE, at the end."""
    alone = [label for labels in tasks.values() if len(labels) == 1 for label in labels]
    if len(alone) <= MAX_ALONE:
        return dict(tasks)
    found = {title: labels for title, labels in tasks.items() if len(labels) > 1}
    return {**found, ALONE: alone}


def ranked_arms(task: ArmSummary, limit: int) -> list[str]:
    """Labels of the arms that fit into a figure, in their order: all, or the baseline and the most accurate ones."""
    labels = task.labels
    if len(labels) <= limit:
        return labels
    chosen = set(by_rank(task)[:limit])
    return [label for label in labels if label in chosen]


def by_rank(task: ArmSummary) -> list[str]:
    """Labels of all arms, the baseline first, then by accuracy."""
    best = task.arms.sort("top1", descending=True, nulls_last=True)["arm"].cast(pl.String).to_list()
    first = [] if task.baseline is None else [task.baseline]
    return first + [label for label in best if label not in first]


def _summarise_task(
    title: str,
    runs: pl.DataFrame,
    evals: pl.DataFrame,
    summary: pl.DataFrame,
    baseline: str | None,
    target: float | None,
) -> ArmSummary:
    table = summary.filter("complete")
    evals = evals.join(table.select("run"), on="run", how="semi")
    # A point that different tasks share says nothing.
    axes = () if title == ALONE else metrics.AXES
    points = {axis: point for axis in axes if (point := metrics.common_point(evals, axis)) is not None}
    for axis, point in points.items():
        at = metrics.accuracy_at(evals, axis, point).select("run", pl.col("top1").alias(f"at_{axis}"))
        table = table.join(at, on="run", how="left", maintain_order="left")
    at_points = [f"at_{axis}" for axis in points]
    # A mean over only those seeds that were evaluated by then would be one over the fast seeds.
    table = table.with_columns(
        pl.when(pl.col(name).is_not_null().all().over("arm")).then(pl.col(name)).alias(name) for name in at_points
    )
    groups = summary.drop_nulls("arm").group_by("arm").agg(runs=pl.len(), complete=pl.col("complete").sum())
    seeds = table.group_by("arm").agg(n=pl.col("seed").n_unique())
    arms = groups.join(seeds, on="arm", how="left").with_columns(pl.col("n").fill_null(0)).sort("arm")
    reported = [name for name in table.columns if name.startswith(METRIC) and table[name].null_count() < len(table)]
    for measure in ("top1", "loss", *at_points, *_MEASURES, *reported):
        is_share = measure not in (*_UNBOUNDED, *reported)
        found = stats.over_seeds(table, measure, bounds=(0.0, 1.0) if is_share else None)
        ends = [pl.col(end).alias(f"{measure}_{end}") for end in ("low", "high")]
        found = found.select("arm", pl.col("mean").alias(measure), *ends)
        arms = arms.join(found, on="arm", how="left", maintain_order="left")
    if target is not None:
        reached = table.select("run", "arm", "seed").join(metrics.to_target(evals, target), on="run")
        means = [pl.col(axis).mean().alias(f"target_{axis}") for axis in metrics.AXES]
        found = reached.group_by("arm").agg(*means, reached=pl.col("seed").filter(pl.col("steps") > 0).n_unique())
        arms = arms.join(found, on="arm", how="left", maintain_order="left")
    size = next((name for name in ("clients", "num_ranks") if _scales(runs, name)), None)
    if size is not None:
        arms = _with_speed_up(arms, runs, size)
    if baseline is None and len(arms) > 1 and title != ALONE:
        baseline = next(iter(arms.filter(pl.col("n") > 0)["arm"].cast(pl.String)), None)
    measures = (*at_points, "top1")
    rounding = _rounding(runs)
    compared = {} if baseline is None else {m: _compared(table, m, baseline, rounding) for m in measures}
    comparisons = stats.judged(compared)
    return ArmSummary(title, arms, points, baseline, comparisons, target, size)


def _rounding(runs: pl.DataFrame) -> float | None:
    """Step between two accuracies, 1 / N for a test split of N samples; None: not known, or not equal in all runs."""
    counts = runs["num_test"].drop_nulls().unique().to_list()
    return 1 / counts[0] if len(counts) == 1 and counts[0] > 0 and not runs["num_test"].has_nulls() else None


def _compared(table: pl.DataFrame, measure: str, baseline: str, rounding: float | None) -> pl.DataFrame:
    """See `stats.compare`; without rows if the baseline itself has no number."""
    compared = stats.compare(table, measure, baseline, rounding)
    has_base = table.filter(pl.col("arm") == baseline)[measure].drop_nulls().len() > 0
    return compared if has_base else compared.clear()


def _scales(runs: pl.DataFrame, size: str) -> bool:
    counts = runs.drop_nulls("arm")[size].unique() if size in runs.columns else pl.Series()
    return len(counts) > 1 and 1 in counts.to_list()


def _with_speed_up(arms: pl.DataFrame, runs: pl.DataFrame, size: str) -> pl.DataFrame:
    """With speed_up and efficiency, against the arm of size 1 whose job is the same in all else."""
    others = ("seed", "name", "engine", "num_ranks", size, *arms.columns)
    within = [key for key in differing_keys(runs) if key not in others]
    jobs = runs.drop_nulls("arm").group_by("arm", maintain_order=True)
    # An arm whose seeds ran on different numbers of ranks has no size.
    one = pl.when(pl.col(size).n_unique() == 1).then(pl.col(size).first()).alias(size)
    firsts = jobs.agg(one, *(pl.col(key).first() for key in within))
    table = arms.select("arm", "samples_per_s").join(firsts, on="arm", how="left", maintain_order="left")
    found = metrics.speed_up(table, size=size, within=within)
    return arms.join(found.select("arm", "speed_up", "efficiency"), on="arm", how="left", maintain_order="left")

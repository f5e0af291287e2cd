"""Tasks: the same net on the same data. Arms of one task are compared with each other, those of two are not."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from hpclbfl.analysis.arms import DATA_KEY, data_key, data_titles
from hpclbfl.core.text import printable

_MAX_TITLE = 200
"""Characters of a task's title."""
ALONE = "tasks of one arm each"
"""Title of the tasks that have nothing to be compared with, together."""
MAX_ALONE = 8
"""Of them, that stand by themselves."""


def arm_tasks(runs: pl.DataFrame) -> dict[str, list[str]]:
    """Titles of the tasks (`resnet50, cifar10`; what is the same in all is left out) with their arms' labels.

    Where no net stands beside two arms, nets themselves are what was varied: tasks then differ in data alone.

    Args:
        runs: the frame `runs` of `frames.Frames`.

    Returns:
        In the order of the arms; at least one task, with the empty title where it is the only one.
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
    """Tasks, those of a single arm together at the end, as ALONE, where they are more than MAX_ALONE."""
    alone = [label for labels in tasks.values() if len(labels) == 1 for label in labels]
    if len(alone) <= MAX_ALONE:
        return dict(tasks)
    found = {title: labels for title, labels in tasks.items() if len(labels) > 1}
    return {**found, ALONE: alone}

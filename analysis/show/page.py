"""The report as one HTML page that needs no network: `hpclbfl report DIR -o report.html`.

The page contains Vega, Vega-Lite, vega-embed and the figures' definitions and rows; its security policy forbids it to
fetch anything. Rows are aggregated and thinned (see `plot_data`), so that a page on 1,000 runs takes a few MB.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import hpclbfl
from hpclbfl.analysis.measure.arm_summary import ArmSummary, by_rank
from hpclbfl.analysis.measure.metrics import AXES
from hpclbfl.analysis.measure.report import Report, problem_lines
from hpclbfl.analysis.read.arms import differing_keys, short_name
from hpclbfl.analysis.read.configs import as_text
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.analysis.read.scan import unstarted
from hpclbfl.analysis.show.captions import CAPTIONS
from hpclbfl.analysis.show.detector_table import detectors_table
from hpclbfl.analysis.show.figures import definition
from hpclbfl.analysis.show.markup import TextTable, to_html
from hpclbfl.analysis.show.render import VEGALITE, figure_rows, max_arms, parts_of
from hpclbfl.analysis.show.style import SPREAD, SPREAD_RATIO
from hpclbfl.analysis.show.tables import all_runs_table, arms_table, comparison_table, differences_table
from hpclbfl.analysis.show.teacher_table import teachers_table
from hpclbfl.analysis.show.traffic_table import traffic_table
from hpclbfl.core.files import write_output
from hpclbfl.core.text import printable
from hpclbfl.runs.folder import utc_now

MAX_TROUBLES = 30
"""Runs with problems that are shown at once; the others are shown after a click."""
DIGITS = 5
"""Significant digits of numbers in figures."""
_HASH_DIGITS = 12
_EVERY_SEED = ("batches_and_waits", "critical_phases")
"""Figures of one example run per arm, whichever seed is chosen."""

_PROVENANCE = (
    *("time", "host", "device", "gpus", "cpu", "engine", "num_ranks", "own_parts", "hpclbfl", "commit", "dirty"),
    *("torch", "horovod", "mpi_library", "python", "platform", "data_fingerprint"),
)


def write_page(path: Path, report: Report) -> None:
    """Write the page, whole or not at all.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    write_output(path, page(report).encode())


def page(report: Report) -> str:
    """The page's HTML."""
    frames, runs, tasks = report.frames, report.runs, report.arms
    labels = [label for task in tasks for label in task.labels]
    places = {label: place for place, label in enumerate(labels)}
    tables = figure_rows(frames)
    keys = [key for key in differing_keys(frames.runs) if key != "seed"]
    filters = _filters(frames.runs, keys, labels)
    seeds = sorted(frames.runs.drop_nulls("arm")["seed"].unique().drop_nulls())
    figures = {name: _figure(name, table, labels) for name, table in tables.items()}
    troubles = problem_lines(frames)
    differences = differences_table(frames.runs, keys, labels)
    data = {
        "arms": labels,
        # By rank: a figure draws the first ones if there are too many.
        "tasks": [{"title": task.title, "arms": [places[label] for label in by_rank(task)]} for task in tasks],
        "num_runs": len(runs),
        "filters": [[value["arms"] for value in key["values"]] for key in filters],
        "figures": figures,
        "spread": {"fields": SPREAD, "ratio": SPREAD_RATIO},
    }
    environment = Environment(
        loader=PackageLoader("hpclbfl.analysis.show", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=printable(f"Runs in {frames.root}"),
        facts=_facts(frames, labels, seeds),
        troubles=sorted(troubles.items()),
        trouble_summary=_trouble_summary(frames),
        max_troubles=MAX_TROUBLES,
        provenance=provenance(frames.runs),
        differences=differences,
        differences_html=Markup(to_html(differences, "differences")),
        filters=filters,
        seeds=seeds,
        num_seeds=len(seeds),
        tasks=[task.title for task in tasks],
        num_arms=len(labels),
        arms_html=[_html(_placed(arms_table(task), task, places), "arms", nth) for nth, task in enumerate(tasks)],
        comparison_html=[
            _html(_placed(comparison_table(task), task, places), "comparisons", nth) for nth, task in enumerate(tasks)
        ],
        traffic_html=_extra(traffic_table, "traffic", frames, tasks, places),
        detectors_html=_extra(detectors_table, "detectors", frames, tasks, places),
        teachers_html=_extra(teachers_table, "teachers", frames, tasks, places),
        figures=_shown_figures(figures),
        num_runs=len(runs),
        runs_html=_html(all_runs_table(runs, labels), "runs"),
        footer=f"Made by hpclbfl {hpclbfl.__version__}, {utc_now()}. {printable(frames.root.resolve())}",
        # Within a script element HTML recognises nothing but its end tag.
        data=Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
        vega=Markup(_vega().replace("</script", "<\\/script").replace("<!--", "\\x3c!--")),
    )


def provenance(runs: pl.DataFrame) -> list[tuple[str, str]]:
    """What ran, where and on what: by name, the values that occur, the most frequent first, with their counts."""
    found = []
    for name in _PROVENANCE:
        cut = _HASH_DIGITS if name in ("commit", "data_fingerprint") else None
        counts = Counter(as_text(value)[:cut] for value in runs[name].drop_nulls())
        if not counts:
            continue
        if name == "time":
            first, last = min(counts), max(counts)
            found.append(("started (UTC)", first if first == last else f"{first} to {last}"))
            continue
        several = len(counts) > 1
        texts = [f"{value} ({count})" if several else value for value, count in counts.most_common(4)]
        more = [f"{len(counts) - 4} more"] if len(counts) > 4 else []
        title = {"num_ranks": "ranks", "dirty": "checkout changed", "commit": "git commit"}.get(name)
        found.append((title or name.replace("_", " "), ", ".join([*texts, *more])))
    return found


def _html(table: TextTable, name: str, nth: int = 0) -> Markup:
    if not table.rows:
        return Markup("<p>{}</p>").format(table.notes[0] if table.notes else "Nothing to show yet.")
    return Markup(to_html(table, f"{name}-{nth + 1}" if nth else name))


def _extra(
    make: Callable[[Frames, ArmSummary], TextTable],
    name: str,
    frames: Frames,
    tasks: Sequence[ArmSummary],
    places: Mapping[str, int],
) -> list[Markup | str]:
    """A further table of each task; empty where it has no rows."""
    tables = [make(frames, task) for task in tasks]
    return [
        _html(_placed(table, task, places), name, nth) if table.rows else ""
        for nth, (table, task) in enumerate(zip(tables, tasks, strict=True))
    ]


def _placed(table: TextTable, task: ArmSummary, places: Mapping[str, int]) -> TextTable:
    """A task's table whose rows are marked with their arms' positions among the arms of all tasks."""
    marks = [{**mark, "arm": str(places[task.labels[int(mark["arm"])]])} for mark in table.marks]
    return replace(table, marks=marks)


def _filters(runs: pl.DataFrame, keys: list[str], labels: list[str]) -> list[dict[str, Any]]:
    """Keys that differ between arms, each with its values and the arms (their positions) that have them."""
    found = []
    known = runs.drop_nulls("arm")
    for key in keys:
        pairs = known.select("arm", key).unique(maintain_order=True).sort(key, "arm", nulls_last=False)
        values: dict[str, list[int]] = {}
        for arm, value in pairs.rows():
            values.setdefault(as_text(value), []).append(labels.index(arm))
        if len(values) > 1:
            texts = [{"text": text, "arms": arms} for text, arms in values.items()]
            found.append({"key": key, "name": short_name(key), "values": texts})
    return found


def _figure(name: str, table: pl.DataFrame, labels: list[str]) -> dict[str, Any]:
    return {
        "spec": definition(name, parts_of(table)),
        "limit": max_arms(name),
        "every_seed": name in _EVERY_SEED,
        "view": {column: _packed(table[column], labels) for column in table.columns},
    }


def _packed(column: pl.Series, labels: list[str]) -> Any:
    if column.name == "arm":
        places = {label: place for place, label in enumerate(labels)}
        return [places[str(arm)] for arm in column]
    if column.dtype == pl.String:
        texts = column.unique(maintain_order=True).drop_nulls().to_list()
        places = {text: place for place, text in enumerate(texts)}
        return {"texts": texts, "places": [-1 if text is None else places[text] for text in column]}
    if column.dtype.is_float():
        return [_short(value) for value in column]
    return column.to_list()


def _short(value: float | None) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _shown_figures(figures: dict[str, Any]) -> list[dict[str, Any]]:
    axes = [axis for axis in AXES if f"learning_curves_{axis}" in figures]
    names = ["learning_curves"] if axes else []
    names += [name for name in figures if not name.startswith("learning_curves_")]
    texts = {name: CAPTIONS[name] for name in names}
    return [
        {"id": name, "title": title, "caption": caption, "axes": axes if name == "learning_curves" else []}
        for name, (title, caption) in texts.items()
    ]


def _facts(frames: Frames, labels: list[str], seeds: list[int]) -> list[str]:
    def count(number: int, thing: str) -> str:
        return f"{number} {thing}{'s' if number != 1 else ''}"

    states = Counter(frames.runs["state"].to_list())
    facts = [count(len(frames.runs), "run"), count(len(labels), "arm"), count(len(seeds), "seed")]
    facts += [f"{number} {state}" for state, number in states.most_common()]
    waiting = len(unstarted(frames.root)[0])
    return facts + ([f"{waiting} not started"] if waiting else [])


def _trouble_summary(frames: Frames) -> str:
    failed = (frames.runs["state"] == "failed").sum()
    lost = frames.problems.filter("rows_lost")["run"].n_unique()
    parts = [f"{failed} of {len(frames.runs)} runs failed"] if failed else []
    parts += [f"of {lost} some rows are lost"] if lost else []
    left_out = "; ".join(parts)
    return f"{left_out}. They are in no mean." if parts else "Nothing that affects the means."


@cache
def _vega() -> str:
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGALITE))

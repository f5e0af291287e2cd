"""The tables of a report: arms, their differences from the baseline, and runs."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from hpclbfl.analysis.measure.arm_summary import ALONE, ArmSummary
from hpclbfl.analysis.measure.metrics import AXES, METRIC
from hpclbfl.analysis.measure.stats import LEVEL, MIN_SEEDS, MOST_SEEDS, POWER, TOO_FEW
from hpclbfl.analysis.read.configs import as_text
from hpclbfl.analysis.show.markup import TextTable, signed

_INTERVALS = (
    f"In brackets: {100 * LEVEL:.0f} % interval of the mean over seeds (Student's t), from {MIN_SEEDS} seeds up; "
    "about 1 in 20 such intervals misses the true mean by chance."
)
_APART = ("sync", "partition")
_SOME_WAIT = 0.1
"""Share of the steps' time spent waiting for slower ranks from which on the terminal shows it."""
_DIFFERENCES = (
    "Differences are paired by seed, in percentage points; effect: Hedges' g of the pairs; p: of Student's paired "
    "test, corrected by Holm for all comparisons of this table, so that at most 1 table in 20 has a wrong verdict; "
    f"seeds needed: to detect a difference as large as this one in {100 * POWER:.0f} % of studies, without the "
    "correction; pairing: share of the variance that pairing by seed removed."
)


def arms_table(task: ArmSummary, brief: bool = False) -> TextTable:
    """Arms side by side: accuracy at the end and at equal steps, samples and seconds, with intervals and n.

    Args:
        brief: without the generalisation gap, the share of scaled steps and samples per second, for a terminal.
    """
    arms, notes = task.arms, []
    shown = {"top1": "final top-1 (%)"}
    without_classes = arms["top1"].null_count() == len(arms) and arms["loss"].null_count() < len(arms)
    for axis, point in task.points.items() if len(arms) > 1 and not without_classes else ():
        same = next((title for name, title in shown.items() if is_same(arms, f"at_{axis}", name)), None)
        if same is not None:
            notes.append(f"At equal {axis} ({number(point)}): as '{same}'.")
        else:
            shown[f"at_{axis}"] = f"at {number(point)} {'s' if axis == 'seconds' else axis} (%)"
    if not brief and arms["gap_top1"].null_count() < len(arms):
        shown["gap_top1"] = "train - test (points)"
    if not brief and (arms["share_scaled"] > 0).any():
        shown["share_scaled"] = "steps at X (%)"
    late = any(arms.filter(pl.col("n") > 0)[f"at_{axis}"].has_nulls() for axis in task.points)
    if late and not without_classes:
        notes.append("Equal points without a number: not all runs of the arm had been evaluated by then.")
    rows = arms.rows(named=True)
    columns: dict[str, list[str]] = {"arm": [str(row["arm"]) for row in rows], "seeds": [_seeds(row) for row in rows]}
    columns |= {title: [_interval(row, name) for row in rows] for name, title in shown.items()}
    if without_classes:
        del columns[shown["top1"]]
        columns["final loss"] = [_number_interval(row, "loss") for row in rows]
    for name in (name for name in arms.columns if name.startswith(METRIC) and f"{name}_low" in arms.columns):
        columns[f"final {name.removeprefix(METRIC)}"] = [_number_interval(row, name) for row in rows]
    if task.target is not None:
        for axis in AXES:
            columns[f"{axis} to {100 * task.target:g} %"] = [_target(row, axis) for row in rows]
    for name, title in (("samples_per_s", "samples/s"), ("elapsed_s", "seconds")):
        if not brief or name == "elapsed_s":
            columns[title] = [number(row[name]) for row in rows]
    if task.size is not None:
        columns["speed-up"] = [number(row["speed_up"]) for row in rows]
        columns["efficiency (%)"] = ["-" if (e := row["efficiency"]) is None else f"{100 * e:.0f}" for row in rows]
        notes.append(f"Speed-up: samples per second against one {'client' if task.size == 'clients' else 'rank'}.")
    return TextTable(
        title=f"{task.title or 'Arms'}: means over seeds of complete runs",
        head=tuple(columns),
        rows=list(zip(*columns.values(), strict=True)),
        left=frozenset({"arm"}),
        notes=(*notes, *([_INTERVALS] if (arms["n"] >= MIN_SEEDS).any() else [])),
        marks=[{"arm": str(place)} for place in range(len(arms))],
    )


def comparison_table(task: ArmSummary) -> TextTable:
    """Every arm against the baseline, at equal steps, samples and seconds.

    Without rows, and with one sentence as its note, if there is nothing to compare or there are too few seeds.
    """
    title = f"Top-1 against {task.baseline}"
    if task.title == ALONE:
        return TextTable(title, (), [], notes=(f"Of {ALONE} there is nothing to compare.",))
    if not task.comparisons:
        there_is = f"Of {task.title} there" if task.title else "There"
        return TextTable(title, (), [], notes=(f"{there_is} is only one arm: nothing to compare.",))
    measures = [f"at_{axis}" for axis in task.points]
    measures = [m for i, m in enumerate(measures) if not any(is_same(task.arms, m, other) for other in measures[:i])]
    tables = {m: task.comparisons[m].rows(named=True) for m in measures}
    if all(row["verdict"] == TOO_FEW for rows in tables.values() for row in rows):
        note = f"{title}: {TOO_FEW}; a difference needs {MIN_SEEDS} seeds that both arms have."
        return TextTable(title, (), [], notes=(note,))
    rows: list[tuple[str, ...]] = []
    marks = []
    for place, arm in enumerate(task.arms["arm"].cast(pl.String)):
        for measure, compared in tables.items():
            # An arm without a value at that point has no row.
            for row in (row for row in compared if row["arm"] == arm):
                effect = "-" if row["effect_size"] is None else signed(row["effect_size"], 2)
                ends = {"difference_low": row["low"], "difference_high": row["high"]}
                difference = _interval({**row, **ends}, "difference", is_signed=True)
                p = "-" if row["p_holm"] is None else f"{row['p_holm']:.2g}"
                rows.append(
                    (
                        *(arm, measure.removeprefix("at_"), str(row["n"]), difference, effect, p),
                        *(_seeds_needed(row), _pairing(row), row["verdict"]),
                    )
                )
                marks.append({"arm": str(place)})
    return TextTable(
        title=title,
        head=("arm", "at equal", "pairs", "difference", "effect", "p", "seeds needed", "pairing", "verdict"),
        rows=rows,
        left=frozenset({"arm", "at equal", "verdict"}),
        notes=(_DIFFERENCES, _INTERVALS),
        marks=marks,
    )


def _seeds_needed(row: dict[str, Any]) -> str:
    if row["p"] is None:
        return "-"
    return f"over {MOST_SEEDS:,}" if row["seeds_needed"] is None else f"{row['seeds_needed']}"


def _pairing(row: dict[str, Any]) -> str:
    return "-" if row["pairing"] is None else f"{100 * row['pairing']:.0f} %"


def runs_table(runs: pl.DataFrame, title: str) -> TextTable:
    """One line per run: synchroniser, partition, accuracy, time; waiting if ranks waited, state if not all are done.

    The arm is named unless synchroniser and partition distinguish all arms.
    """
    columns: dict[str, list[str]] = {name: runs[name].cast(pl.String).fill_null("-").to_list() for name in _APART}
    if runs.select(_APART).n_unique() < runs["arm"].n_unique():
        columns["arm"] = runs["arm"].cast(pl.String).fill_null("-").to_list()
    if runs["top1"].null_count() < len(runs) or runs["loss"].null_count() == len(runs):
        columns["test accuracy"] = ["-" if top1 is None else f"{100 * top1:.1f} %" for top1 in runs["top1"]]
    else:
        columns["test loss"] = [number(loss) for loss in runs["loss"]]
    for name in (name for name in runs.columns if name.startswith(METRIC)):
        columns[name.removeprefix(METRIC)] = [number(value) for value in runs[name]]
    columns["seconds"] = ["-" if seconds is None else f"{seconds:.1f}" for seconds in runs["elapsed_s"]]
    if (runs["share_wait"] >= _SOME_WAIT).any():
        columns["wait"] = ["-" if share is None else f"{100 * share:.0f} %" for share in runs["share_wait"]]
    if (runs["state"] != "done").any():
        columns["state"] = runs["state"].to_list()
    columns["run"] = runs["run"].to_list()
    rows = list(zip(*columns.values(), strict=True))
    return TextTable(title, tuple(columns), rows, left=frozenset({*_APART, "arm", "state", "run"}))


def differences_table(runs: pl.DataFrame, keys: list[str], labels: list[str]) -> TextTable:
    """Differences between arms: one row per arm, one column per key of the job that differs."""
    rows, marks = [], []
    known = runs.drop_nulls("arm")
    for place, label in enumerate(labels):
        arm = known.filter(pl.col("arm") == label)
        texts = [", ".join(dict.fromkeys(as_text(value) for value in arm[key])) for key in keys]
        rows.append((label, *texts))
        marks.append({"arm": str(place)})
    return TextTable(
        title="Where their jobs differ",
        head=("arm", *keys),
        rows=rows if keys else [],
        left=frozenset(("arm", *keys)),
        marks=marks,
    )


def all_runs_table(runs: pl.DataFrame, labels: list[str]) -> TextTable:
    """One row per run."""
    rows, marks = [], []
    places = {label: str(place) for place, label in enumerate(labels)}
    for row in runs.rows(named=True):
        numbers = (row["top1"], row["best_top1"])
        accuracies = ["-" if value is None else f"{100 * value:.1f}" for value in numbers]
        times = ["-" if row[name] is None else f"{row[name]:,.1f}" for name in ("epochs", "elapsed_s")]
        steps = "-" if row["steps"] is None else f"{row['steps']:,}"
        seed = "-" if row["seed"] is None else str(row["seed"])
        rows.append((str(row["run"]), row["arm"] or "-", seed, row["state"], *accuracies, steps, *times))
        marks.append({"arm": places.get(row["arm"], "-1"), "seed": seed})
    head = ("run", "arm", "seed", "state", "top-1 (%)", "best (%)", "steps", "epochs", "seconds")
    return TextTable("All runs", head, rows, left=frozenset({"run", "arm", "state"}), marks=marks)


def is_same(arms: pl.DataFrame, name: str, other: str) -> bool:
    """Whether two columns are equal to the printed digits."""
    return arms[name].round(3).equals(arms[other].round(3))


def _seeds(row: dict[str, Any]) -> str:
    left_out = row["runs"] - row["complete"]
    return f"{row['n']}" + (f" ({left_out} run{'s' if left_out > 1 else ''} left out)" if left_out else "")


def _interval(row: dict[str, Any], name: str, is_signed: bool = False) -> str:
    """A share as a percentage, with its interval if it has one."""
    if row[name] is None:
        return "-"
    mean, low, high = (
        None if value is None else signed(100 * value, 1) if is_signed else format(100 * value, ".1f")
        for value in (row[name], row[f"{name}_low"], row[f"{name}_high"])
    )
    return f"{mean}" if low is None else f"{mean} [{low}, {high}]"


def _number_interval(row: dict[str, Any], name: str) -> str:
    """A number, with its interval where it has one."""
    mean, low, high = (number(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return mean if row[f"{name}_low"] is None else f"{mean} [{low}, {high}]"


def number(value: float | None) -> str:
    """With at least three digits: `0.123`, `12.3`, `5,000`."""
    if value is None or not math.isfinite(value):
        return "-"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _target(row: dict[str, Any], axis: str) -> str:
    if not row["reached"]:
        return "never" if row["n"] else "-"
    some = "" if row["reached"] == row["n"] else f" ({row['reached']} of {row['n']})"
    return number(row[f"target_{axis}"]) + some

"""The paper's Fig. 1, 2, 4 and 5 for the user's own devices, and Eq. 2 by number of ranks, as one picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from hpclbfl.batching.cost_model import plain_line
from hpclbfl.batching.plan_file import Plan
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.files import write_output
from hpclbfl.planner.recommend import predictions
from hpclbfl.planner.report import memory_parts
from hpclbfl.planner.store import ProbeRow

_SIZE_PX = {"width": 380, "height": 240}
_SUM = "t_c + t_mov"
_PARTS = ["M_model", "M_grad", "M_opt", "M_act", "M_batch", "other"]

Point = dict[str, Any]


def draw(plan: Plan, rows: Sequence[ProbeRow], title: str, path: Path) -> None:
    """Write a .png or .svg.

    Raises:
        ConfigError: another ending.
        EnvironmentFault: it cannot be written.
    """
    import vl_convert

    specification = json.dumps(chart(plan, rows, title))
    if path.suffix == ".png":
        write_output(path, vl_convert.vegalite_to_png(specification, scale=2))
    elif path.suffix == ".svg":
        write_output(path, vl_convert.vegalite_to_svg(specification).encode())
    else:
        raise ConfigError(f"{path}: a plot is a .png or an .svg")


def chart(plan: Plan, rows: Sequence[ProbeRow], title: str) -> dict[str, Any]:
    """The picture as a Vega-Lite specification: memory, time, epoch and, with a network, step time by ranks."""
    first = [row for row in rows if row.rank == plan.ranks[0].rank]
    times = {"t_local_s": _SUM, "t_c_s": "t_c", "t_mov_s": "t_mov"}
    panels = [
        _memory(plan, first),
        _panel(
            *_by_batch(first, {"m_act_bytes": "M_act", "m_batch_bytes": "M_batch"}, 1e-6),
            *("MB", "activation and batch memory (Fig. 4)", "what"),
        ),
        _panel(
            *_by_batch(rows, times, 1e3),
            *("ms per step", "time of a step (Fig. 1)", "what" if len(plan.ranks) == 1 else "rank"),
        ),
        _compute(rows),
        _epochs(plan, rows),
    ]
    panels += [_steps(plan)] if plan.network is not None else []
    own: dict[str, Any] = dict.fromkeys(("color", "fill", "shape", "strokeDash", "fillOpacity"), "independent")
    pairs = [alt.hconcat(*panels[k : k + 2]).resolve_scale(**own) for k in range(0, len(panels), 2)]
    marks = "circles, squares, triangles: medians; filled ones were fitted, hollow ones held out"
    whole = alt.vconcat(*pairs).resolve_scale(**own).properties(title=alt.TitleParams(title, subtitle=marks))
    specification: dict[str, Any] = whole.to_dict()
    return specification


def _memory(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Eq. 3 and Fig. 4a: the components stacked, the measured peaks and the limit."""
    rank = plan.ranks[0]
    memory = rank.memory
    if memory is None:
        return alt.Chart(_data([])).mark_point()
    probes = [r for r in rows if r.quantity == "m_total_bytes" and r.role != "failed"]
    sizes = [r.batch for r in probes]
    areas = [
        {"batch": batch, "part": part, "MB": size / 1e6, "place": _PARTS.index(part)}
        for batch in _grid(min([memory.total_from_batch, *sizes]), max([rank.max_batch, *sizes]))
        for part, size in memory_parts(memory, batch).items()
    ]
    area = alt.Chart(_data(areas), title=f"memory of rank {rank.rank} (Eq. 3, Fig. 4)").mark_area(opacity=0.8)
    area = area.encode(
        x=alt.X("batch:Q", title="local batch size"),
        y=alt.Y("MB:Q", stack="zero", title="MB"),
        color=alt.Color("part:N", sort=_PARTS, title=None, scale=alt.Scale(scheme="viridis")),
        order=alt.Order("place:Q"),
    )
    peaks = alt.Chart(_data({"batch": r.batch, "MB": r.measured / 1e6} for r in probes))
    layers = [area, peaks.mark_point(color="black", filled=True, size=45).encode(x="batch:Q", y="MB:Q")]
    # A limit far above all probes would compress the rest.
    if memory.limit_bytes < 2 * max(r.measured for r in probes):
        limit = alt.Chart(_data([{"MB": memory.limit_bytes / 1e6}])).mark_rule(strokeDash=[6, 4])
        layers.append(limit.encode(y="MB:Q"))
    return alt.layer(*layers).properties(**_SIZE_PX)


def _compute(rows: Sequence[ProbeRow]) -> Any:
    """Fig. 5: t_c, medians and quartiles, the fit and one straight line through all medians."""
    points, lines = _by_batch(rows, {"t_c_s": "fit"}, 1e3)
    for rank in sorted({point["rank"] for point in points}):
        medians = {p["batch"]: p["value"] for p in points if p["rank"] == rank}
        line = plain_line(medians)
        batches = [b for b in _grid(min(medians), max(medians)) if line(b) > 0]
        lines += [{"batch": b, "value": line(b), "what": "plain line", "rank": rank} for b in batches]
    return _panel(points, lines, "ms per step", "t_c, median and quartiles (Fig. 5)", "rank", spread=True)


def _epochs(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 2: time of an epoch on one rank alone, medians and quartiles, the fit and the best batch."""
    steps = {batch: (plan.num_train or 1) / batch for batch in {r.batch for r in rows if r.batch}}
    epochs = [
        replace(r, measured=steps[r.batch] * r.measured, predicted=steps[r.batch] * r.predicted)
        for r in rows
        if r.quantity == "t_local_s"
    ]
    points, lines = _by_batch(epochs, {"t_local_s": "fit"}, 1.0)
    title = "epoch of one rank alone, median and quartiles (Fig. 2)"
    best = {(rank.best_batch, f"rank {rank.rank}") for rank in plan.ranks}
    labels = [{**p, "text": "best"} for p in points if (p["batch"], p["rank"]) in best]
    marks = alt.Chart(_data(labels)).mark_text(dy=-8).encode(x="batch:Q", y="high:Q", text="text:N")
    return alt.layer(_panel(points, lines, "s per epoch", title, "rank", spread=True), marks)


def _steps(plan: Plan) -> Any:
    """Eq. 2 by number of ranks."""
    points = [
        {"ranks": row["num_ranks"], "ms": 1e3 * row["t_step_s"], "H": f"H = {row['local_steps']:.0f}"}
        for row in predictions(plan)
    ]
    lines = alt.Chart(_data(points), title="time of a step by number of ranks (Eq. 2)").mark_line(point=True)
    return lines.encode(
        x=alt.X("ranks:Q", scale=alt.Scale(type="log", base=2), title="ranks"),
        y=alt.Y("ms:Q", title="ms per step", scale=alt.Scale(zero=True)),
        color=alt.Color("H:N", title=None),
    ).properties(**_SIZE_PX)


def _by_batch(rows: Iterable[ProbeRow], names: Mapping[str, str], unit: float) -> tuple[list[Point], list[Point]]:
    """Median and quartiles of each quantity, rank and batch size, and their predictions, times `unit`."""
    groups: dict[tuple[str, str, int], list[ProbeRow]] = {}
    order = list(names)
    known = [row for row in rows if row.quantity in names]
    for row in sorted(known, key=lambda r: (order.index(r.quantity), r.rank, r.batch)):
        groups.setdefault((names[row.quantity], f"rank {row.rank}", row.batch), []).append(row)
    points: list[Point] = []
    lines: list[Point] = []
    for (what, rank, batch), found in groups.items():
        common = {"batch": batch, "what": what, "rank": rank}
        low, middle, high = np.quantile([unit * r.measured for r in found], [0.25, 0.5, 0.75]).tolist()
        role = "held out" if found[0].role == "held_out" else "fitted"
        points.append({**common, "value": middle, "low": low, "high": high, "role": role})
        lines.append({**common, "value": unit * found[0].predicted})
    # Logarithmic axes have no 0.
    return [point for point in points if point["low"] > 0], [point for point in lines if point["value"] > 0]


def _panel(points: list[Point], lines: list[Point], unit: str, title: str, color: str, spread: bool = False) -> Any:
    """Medians, optionally quartiles, and lines by batch size, on logarithmic axes.

    Args:
        color: what colours encode: `what` or `rank`; shapes and dashes always encode `what`.
    """
    log, faint = alt.Scale(type="log", nice=False, padding=12), alt.Axis(gridOpacity=0.4)
    most = max(point["batch"] for point in points)
    ticks = alt.Axis(values=[2**k for k in range(most.bit_length())], format="d", labelOverlap=True)
    x = alt.X("batch:Q", title="local batch size", scale=log, axis=ticks)
    y = alt.Y("value:Q", title=unit, scale=log, axis=faint)
    # One legend is enough for fills and strokes, and one for shapes and dashes.
    legend, by_what = alt.Legend(title=None), color == "what"
    colors = legend if by_what or len({point["rank"] for point in points}) > 1 else None
    stroke, fill = alt.Color(f"{color}:N", legend=None), alt.Fill(f"{color}:N", legend=colors)
    dash = alt.StrokeDash("what:N", legend=None if by_what else legend)
    shape = alt.Shape("what:N", legend=legend if by_what else None)
    roles = alt.Scale(domain=["fitted", "held out"], range=[0.8, 0])
    # The sum may coincide with its larger part.
    size = alt.condition(f"datum.what == '{_SUM}'", alt.value(160), alt.value(40))
    fit = alt.Chart(_data(lines), title=title).mark_line(strokeWidth=1.5)
    layers = [fit.encode(x=x, y=y, color=stroke, strokeDash=dash)]
    if spread:
        quartiles = alt.Chart(_data(points)).mark_rule(strokeWidth=4, opacity=0.4)
        low = alt.Y("low:Q", title=unit, scale=log, axis=faint)
        layers.append(quartiles.encode(x=x, y=low, y2="high:Q", color=stroke))
    hollow = alt.FillOpacity("role:N", scale=roles, legend=None)
    dots = alt.Chart(_data(points)).mark_point(strokeWidth=1.5, opacity=0.9)
    layers.append(dots.encode(x=x, y=y, color=stroke, fill=fill, shape=shape, fillOpacity=hollow, size=size))
    return alt.layer(*layers).properties(**_SIZE_PX)


def _grid(low: int, high: int, count: int = 40) -> list[int]:
    """Batch sizes from low to high at equal ratios."""
    return sorted({low, high, *(round(b) for b in np.geomspace(low, high, count + 1))})


def _data(values: Iterable[Point]) -> Any:
    return alt.InlineData(values=list(values))

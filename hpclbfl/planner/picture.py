"""The paper's Fig. 1, 2, 4 and 5 for the user's own devices, and Eq. 2 over numbers of ranks, as one picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.batching.cost_model import plain_line
from hpclbfl.batching.plan_file import Plan, RankPlan
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.files import write_output
from hpclbfl.planner.recommend import predictions
from hpclbfl.planner.report import memory_parts
from hpclbfl.planner.store import ProbeRow

_SIZE_PX = {"width": 380, "height": 240}
BOTH = "t_c + t_mov"
_PARTS = ("M_model", "M_grad", "M_opt", "M_act", "M_batch", "other")

Point = dict[str, Any]


def draw(plan: Plan, rows: Sequence[ProbeRow], title: str, path: Path) -> None:
    """Write a .png or .svg.

    Raises:
        ConfigError: another ending.
        EnvironmentFault: it cannot be written.
    """
    import vl_convert

    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: a plot is a .png or an .svg")
    specification = json.dumps(chart(plan, rows, title))
    if path.suffix == ".png":
        write_output(path, vl_convert.vegalite_to_png(specification, scale=2))
    else:
        write_output(path, vl_convert.vegalite_to_svg(specification).encode())


def chart(plan: Plan, rows: Sequence[ProbeRow], title: str) -> dict[str, Any]:
    """The picture as a Vega-Lite specification: memory, time, epoch and, with a network, step against ranks."""
    import altair

    panels = [_memory(plan, rows), _parts(plan, rows), _times(plan, rows), _compute(rows), _epochs(plan, rows)]
    panels += [_steps(plan)] if plan.network is not None else []
    own: dict[str, Any] = dict.fromkeys(("color", "fill", "shape", "strokeDash", "fillOpacity"), "independent")
    pairs = [altair.hconcat(*panels[k : k + 2]).resolve_scale(**own) for k in range(0, len(panels), 2)]
    whole = altair.vconcat(*pairs).resolve_scale(**own)
    marks = "circles, squares, triangles: medians; filled ones were fitted, hollow ones held out"
    whole = whole.properties(title=altair.TitleParams(title, subtitle=marks))
    specification: dict[str, Any] = whole.to_dict()
    return specification


def _memory(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Eq. 3 and Fig. 4a: components stacked, the measured peaks on top, the limit."""
    import altair

    rank = plan.ranks[0]
    memory = rank.memory
    if memory is None:
        return altair.Chart(altair.InlineData(values=[])).mark_point()
    probes = [r for r in rows if r.quantity == "m_total_bytes" and r.rank == rank.rank and r.role != "failed"]
    largest = max([rank.max_batch, *(r.batch for r in probes)])
    grid = _grid(min([memory.total_from_batch, *(r.batch for r in probes)]), largest)
    areas = [
        {"batch": batch, "part": part, "MB": size / 1e6, "place": _PARTS.index(part)}
        for batch in grid
        for part, size in memory_parts(memory, batch).items()
    ]
    base = altair.Chart(_data(areas), title=f"memory of rank {rank.rank} (Eq. 3, Fig. 4)")
    area = base.mark_area(opacity=0.8).encode(
        x=altair.X("batch:Q", title="local batch size"),
        y=altair.Y("MB:Q", stack="zero", title="MB"),
        color=altair.Color("part:N", sort=list(_PARTS), title=None, scale=altair.Scale(scheme="viridis")),
        order=altair.Order("place:Q"),
    )
    points = [{"batch": r.batch, "MB": r.measured / 1e6} for r in probes]
    layers = [
        area,
        altair.Chart(_data(points)).mark_point(color="black", filled=True, size=45).encode(x="batch:Q", y="MB:Q"),
    ]
    # A limit far above all probes would press them flat.
    if memory.limit_bytes < 2 * max(r.measured for r in probes):
        limit = altair.Chart(_data([{"MB": memory.limit_bytes / 1e6}])).mark_rule(strokeDash=[6, 4])
        layers.append(limit.encode(y="MB:Q"))
    return altair.layer(*layers).properties(**_SIZE_PX)


def _parts(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 4: activation and batch memory of rank 0, measured and as fitted."""
    mine = [r for r in rows if r.rank == plan.ranks[0].rank]
    points, lines = _against_batch(mine, {"m_act_bytes": "M_act", "m_batch_bytes": "M_batch"}, 1e-6)
    return _panel(points, lines, "MB", "activation and batch memory (Fig. 4)", color="what")


def _times(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 1: t_c, t_mov and both together, medians, with the fits."""
    names = {"t_local_s": BOTH, "t_c_s": "t_c", "t_mov_s": "t_mov"}
    points, lines = _against_batch(rows, names, 1e3)
    color = "what" if len(plan.ranks) == 1 else "rank"
    return _panel(points, lines, "ms per step", "time of a step (Fig. 1)", color)


def _compute(rows: Sequence[ProbeRow]) -> Any:
    """Fig. 5: t_c, medians and quartiles, the fit and one plain line through all medians."""
    points, lines = _against_batch(rows, {"t_c_s": "fit"}, 1e3)
    for rank in sorted({point["rank"] for point in points}):
        middle = {p["batch"]: p["value"] for p in points if p["rank"] == rank}
        plain = plain_line(middle)
        ends = [b for b in _grid(min(middle), max(middle)) if plain(b) > 0]
        lines += [{"batch": b, "value": plain(b), "what": "plain line", "rank": rank} for b in ends]
    return _panel(points, lines, "ms per step", "t_c, median and quartiles (Fig. 5)", color="rank", spread=True)


def _epochs(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 2: time of an epoch on one rank alone, medians and quartiles, the fit and the best batch."""
    import altair

    steps = {batch: (plan.num_train or 1) / batch for batch in {r.batch for r in rows if r.batch}}
    epochs = [
        replace(r, measured=steps[r.batch] * r.measured, predicted=steps[r.batch] * r.predicted)
        for r in rows
        if r.quantity == "t_local_s"
    ]
    points, lines = _against_batch(epochs, {"t_local_s": "fit"}, 1.0)
    title = "epoch of one rank alone, median and quartiles (Fig. 2)"
    best = [{**p, "text": "best"} for p in points for r in plan.ranks if (p["batch"], p["rank"]) == _best(r)]
    marks = altair.Chart(_data(best)).mark_text(dy=-8).encode(x="batch:Q", y="high:Q", text="text:N")
    return altair.layer(_panel(points, lines, "s per epoch", title, color="rank", spread=True), marks)


def _steps(plan: Plan) -> Any:
    """Eq. 2 against the number of ranks."""
    import altair

    rows = predictions(plan)
    points = [
        {"ranks": row["num_ranks"], "ms": 1e3 * row["t_step_s"], "H": f"H = {row['local_steps']:.0f}"} for row in rows
    ]
    title = "time of a step over ranks (Eq. 2)"
    return (
        altair.Chart(_data(points), title=title)
        .mark_line(point=True)
        .encode(
            x=altair.X("ranks:Q", scale=altair.Scale(type="log", base=2), title="ranks"),
            y=altair.Y("ms:Q", title="ms per step", scale=altair.Scale(zero=True)),
            color=altair.Color("H:N", title=None),
        )
        .properties(**_SIZE_PX)
    )


def _against_batch(rows: Iterable[ProbeRow], names: Mapping[str, str], unit: float) -> tuple[list[Point], list[Point]]:
    """Median and quartiles of each quantity, rank and batch size, and what the fit has for them, times `unit`."""
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
    # On logarithmic axes.
    return [point for point in points if point["low"] > 0], [point for point in lines if point["value"] > 0]


def _panel(points: list[Point], lines: list[Point], unit: str, title: str, color: str, spread: bool = False) -> Any:
    """Medians, quartiles where wanted, and lines against the batch, on logarithmic axes.

    Args:
        color: what colours stand for: `what` or `rank`; shapes and dashes are for `what`.
    """
    import altair

    log = altair.Scale(type="log", nice=False, padding=12)
    most = max(point["batch"] for point in points)
    ticks = altair.Axis(values=[2**k for k in range(most.bit_length())], format="d", labelOverlap=True)
    faint = altair.Axis(gridOpacity=0.4)
    x = altair.X("batch:Q", title="local batch size", scale=log, axis=ticks)
    y = altair.Y("value:Q", title=unit, scale=log, axis=faint)
    by_what = color == "what"
    # What fills and shapes say of the points, strokes and dashes need not say again.
    shown, hidden = altair.Legend(title=None), None
    colors = shown if by_what or len({point["rank"] for point in points}) > 1 else hidden
    stroke, fill = altair.Color(f"{color}:N", legend=hidden), altair.Fill(f"{color}:N", legend=colors)
    dash = altair.StrokeDash("what:N", legend=hidden if by_what else shown)
    shape = altair.Shape("what:N", legend=shown if by_what else hidden)
    hollow = altair.FillOpacity(
        "role:N", scale=altair.Scale(domain=["fitted", "held out"], range=[0.8, 0]), legend=None
    )
    # The sum may lie where its larger part lies.
    size = altair.condition(f"datum.what == '{BOTH}'", altair.value(160), altair.value(40))
    line = altair.Chart(_data(lines), title=title).mark_line(strokeWidth=1.5)
    layers = [line.encode(x=x, y=y, color=stroke, strokeDash=dash)]
    if spread:
        bars = altair.Chart(_data(points)).mark_rule(strokeWidth=4, opacity=0.4)
        layers.append(
            bars.encode(x=x, y=altair.Y("low:Q", title=unit, scale=log, axis=faint), y2="high:Q", color=stroke)
        )
    dots = altair.Chart(_data(points)).mark_point(strokeWidth=1.5, opacity=0.9)
    layers.append(dots.encode(x=x, y=y, color=stroke, fill=fill, shape=shape, fillOpacity=hollow, size=size))
    return altair.layer(*layers).properties(**_SIZE_PX)


def _best(rank: RankPlan) -> tuple[int | None, str]:
    return rank.best_batch, f"rank {rank.rank}"


def _grid(low: int, high: int, count: int = 40) -> list[int]:
    """Batch sizes from low to high at even ratios."""
    ratio = (high / low) ** (1 / count) if high > low else 1.0
    return sorted({low, high, *(round(low * ratio**k) for k in range(count))})


def _data(values: Iterable[Point]) -> Any:
    import altair

    return altair.InlineData(values=list(values))

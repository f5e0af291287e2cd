"""The paper's Fig. 1, 2, 4 and 5 for the user's own devices, and Eq. 2 over numbers of ranks, as one picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpclbfl.errors import ConfigError, EnvironmentFault
from hpclbfl.planner.fits import medians
from hpclbfl.planner.plan_file import Plan
from hpclbfl.planner.recommend import predictions
from hpclbfl.planner.report import at, memory_parts
from hpclbfl.planner.store import ProbeRow

_SIZE_PX = {"width": 380, "height": 240}
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            path.write_bytes(vl_convert.vegalite_to_png(specification, scale=2))
        else:
            path.write_text(vl_convert.vegalite_to_svg(specification), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error


def chart(plan: Plan, rows: Sequence[ProbeRow], title: str) -> dict[str, Any]:
    """The picture as a Vega-Lite specification: memory, time, epoch and, with a network, step against ranks."""
    import altair

    panels = [_memory(plan, rows), _times(plan, rows), _epochs(plan, rows)]
    panels.append(_steps(plan) if plan.network is not None else _batch_memory(plan, rows))
    own: dict[str, Any] = {"color": "independent", "shape": "independent"}
    pairs = [altair.hconcat(*pair).resolve_scale(**own) for pair in (panels[:2], panels[2:])]
    whole = altair.vconcat(*pairs).resolve_scale(**own).properties(title=title)
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
        x=_batch_axis(),
        y=altair.Y("MB:Q", stack="zero", title="MB"),
        color=altair.Color("part:N", sort=list(_PARTS), title=None, scale=altair.Scale(scheme="tableau10")),
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


def _times(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 1 and 5: t_c and t_mov against batch size, with the lines."""
    points, lines = [], []
    for rank in plan.ranks:
        for quantity, name, fit in (("t_c_s", "t_c", rank.t_c), ("t_mov_s", "t_mov", rank.t_mov)):
            mine = [r for r in rows if r.quantity == quantity and r.rank == rank.rank]
            label = name if len(plan.ranks) == 1 else f"{name}, rank {rank.rank}"
            roles = {r.batch: _role(r) for r in mine}
            for batch, seconds in medians((r.batch, r.measured) for r in mine).items():
                points.append({"batch": batch, "ms": 1e3 * seconds, "what": label, "role": roles[batch]})
            if fit is not None and mine:
                ends = _grid(min(roles), max(roles))
                lines += [{"batch": b, "ms": 1e3 * at(fit, b), "what": label} for b in ends if at(fit, b) > 0]
    return _fitted(points, lines, y="ms", y_title="ms per step", title="time of a step (Fig. 1, 5)")


def _epochs(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 2: time of an epoch on one rank alone, every repetition, the fit and the best batch."""
    import altair

    num_train = plan.num_train or 1
    points, lines, best = [], [], []
    for rank in plan.ranks:
        label = f"rank {rank.rank}"
        mine = [r for r in rows if r.quantity == "t_local_s" and r.rank == rank.rank]
        points += [{"batch": r.batch, "s": num_train / r.batch * r.measured, "rank": label} for r in mine]
        if mine:
            lines += [
                {"batch": b, "s": num_train / b * rank.seconds(b), "rank": label}
                for b in _grid(min(r.batch for r in mine), max(r.batch for r in mine))
            ]
        if rank.best_batch is not None:
            seconds = num_train / rank.best_batch * rank.seconds(rank.best_batch)
            best.append({"batch": rank.best_batch, "s": seconds, "rank": label, "text": f"best: {rank.best_batch}"})
    log = altair.Scale(type="log", nice=False, padding=12)
    y = altair.Y("s:Q", scale=log, title="s per epoch, one rank alone")
    color = altair.Color("rank:N", title=None)
    line = altair.Chart(_data(lines), title="time of an epoch (Fig. 2)").mark_line(strokeDash=[5, 3])
    dots = altair.Chart(_data(points)).mark_point(filled=True, size=20, opacity=0.5)
    mark = altair.Chart(_data(best)).mark_point(size=160, strokeWidth=2)
    text = altair.Chart(_data(best)).mark_text(dy=-14)
    layers = [layer.encode(x=_batch_axis(log), y=y, color=color) for layer in (line, dots, mark)]
    return altair.layer(*layers, text.encode(x="batch:Q", y="s:Q", text="text:N")).properties(**_SIZE_PX)


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


def _batch_memory(plan: Plan, rows: Sequence[ProbeRow]) -> Any:
    """Fig. 4: activation and batch memory, measured and as fitted, on logarithmic axes."""
    rank = plan.ranks[0]
    points, lines = [], []
    for quantity, name in (("m_act_bytes", "M_act"), ("m_batch_bytes", "M_batch")):
        mine = [r for r in rows if r.quantity == quantity and r.rank == rank.rank]
        roles = {r.batch: _role(r) for r in mine}
        for batch, size in medians((r.batch, r.measured) for r in mine).items():
            if size > 0:
                points.append({"batch": batch, "MB": size / 1e6, "what": name, "role": roles[batch]})
        lines += [{"batch": r.batch, "MB": r.predicted / 1e6, "what": name} for r in mine if r.predicted > 0]
    return _fitted(points, lines, y="MB", y_title="MB", title="activation and batch memory (Fig. 4)")


def _fitted(points: list[dict[str, Any]], lines: list[dict[str, Any]], y: str, y_title: str, title: str) -> Any:
    """Measured points and the fits through them against the batch, on logarithmic axes."""
    import altair

    log = altair.Scale(type="log", nice=False, padding=12)
    color = altair.Color("what:N", title=None)
    line = altair.Chart(_data(lines), title=title).mark_line(strokeDash=[5, 3])
    dots = altair.Chart(_data(points)).mark_point(filled=True, size=45)
    shape = altair.Shape("role:N", title=None)
    x, height = _batch_axis(log), altair.Y(f"{y}:Q", scale=log, title=y_title)
    layers = line.encode(x=x, y=height, color=color), dots.encode(x=x, y=height, color=color, shape=shape)
    return altair.layer(*layers).properties(**_SIZE_PX)


def _batch_axis(scale: Any = None) -> Any:
    import altair

    options = {} if scale is None else {"scale": scale}
    return altair.X("batch:Q", title="local batch size", **options)


def _role(row: ProbeRow) -> str:
    return "held out" if row.role == "held_out" else "fitted"


def _grid(low: int, high: int, count: int = 40) -> list[int]:
    """Batch sizes from low to high at even ratios."""
    ratio = (high / low) ** (1 / count) if high > low else 1.0
    return sorted({low, high, *(round(low * ratio**k) for k in range(count))})


def _data(values: Iterable[Point]) -> Any:
    import altair

    return altair.InlineData(values=list(values))

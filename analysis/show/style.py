"""What all figures share: colours, dashes, shapes, legends, and filling a definition with rows.

Arms differ in colour, dash and shape at once, so that figures can be read in black and white and by the colour-blind
(Okabe and Ito's palette without its yellow).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

MAX_ARMS = 8
"""Arms that colours, dashes and shapes can distinguish."""
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [5, 1], [12, 4], [1, 3], [6, 2, 1, 2, 1, 2])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")

PARTS: dict[str, tuple[str, str]] = {
    "compute": ("compute", "#084C7C"),
    "data": ("data", "#3D8FC4"),
    "transfer": ("transfer", "#F2A93B"),
    "wait": ("wait", "#FBF3D0"),
    "sync": ("sync (transfer and wait)", "#E4DFC8"),
}
"""Parts of a step's time: name in the legend and colour, from dark to light in the order of the bars."""

SPREAD = ("cumulative_norm",)
"""Fields whose linear axis becomes logarithmic if their values are spread widely."""
SPREAD_RATIO = 1000
"""Ratio of the largest value to the median from which on they are."""

ROWS = "rows"
"""Name of the data set in every definition."""

Chart = alt.Chart | alt.LayerChart | alt.ConcatChart | alt.FacetChart


def fill(spec: Any, rows: list[dict[str, Any]], arms: Sequence[str]) -> Any:
    """A definition with its data.

    Args:
        rows: of the figure's table.
        arms: labels of all arms that a report draws, at most MAX_ARMS if the figure uses colours. An arm keeps its
            colour in figures that lack other arms.
    """
    labels = {row["label"]: arms.index(row["arm"]) for row in rows}
    spread = [field for field in SPREAD if is_spread([row[field] for row in rows if field in row])]
    return {**_with_domain(spec, labels, spread), "datasets": {ROWS: rows}}


def is_spread(values: Sequence[float]) -> bool:
    """Whether a linear axis would show only the largest values, such as those of a run that diverged."""
    return bool(values) and max(values) > SPREAD_RATIO * sorted(values)[len(values) // 2] > 0


def _with_domain(node: Any, labels: dict[str, int], spread: Sequence[str]) -> Any:
    if isinstance(node, list):
        return [_with_domain(item, labels, spread) for item in node]
    if not isinstance(node, dict):
        return node
    # Tooltips and groupings have no order.
    found = {
        key: value if key in ("tooltip", "detail") else _with_domain(value, labels, spread)
        for key, value in node.items()
    }
    if node.get("field") in spread and "scale" in node:
        found |= {"scale": {"type": "symlog"}, "title": f"{node['title']} (log scale)"}
    if node.get("field") == "label" and "type" in node:
        names = sorted(labels, key=labels.__getitem__)
        if "range" in node.get("scale", {}):
            found["scale"] = {"domain": names, "range": [node["scale"]["range"][labels[name]] for name in names]}
        else:
            found["sort"] = names
    return found


def rows() -> alt.Chart:
    """A chart of the data set that `fill` provides."""
    return alt.Chart(alt.NamedData(ROWS))


def loose() -> alt.Scale:
    """A scale that need not start at 0."""
    return alt.Scale(zero=False, nice=False, padding=10)


def tips(*fields: str) -> list[alt.Tooltip]:
    """Tooltip with these fields."""
    return [alt.Tooltip(field, format=".4~g") if field.endswith(":Q") else alt.Tooltip(field) for field in fields]


def legend(stroke_width: float = 0) -> alt.Legend:
    """The legend of arms. Vega-Lite merges legends only if they are equal in every property."""
    # Without a stroke, which the dashes of the lines would interrupt.
    return alt.Legend(labelLimit=320, symbolSize=80, symbolStrokeWidth=stroke_width, symbolOpacity=1, symbolLimit=16)


def color() -> alt.Color:
    """An arm's colour."""
    return alt.Color("label:N", title=None, scale=alt.Scale(range=list(COLORS)), legend=legend())


def dashes() -> alt.Scale:
    """Dashes of lines, in the order of the arms."""
    return alt.Scale(range=[list(dash) for dash in DASHES])


def line(base: alt.Chart, x: alt.X, y: alt.Y) -> Chart:
    """Lines with the arm's shape at marked points; the legend shows the shapes."""
    dash = alt.StrokeDash("label:N", title=None, scale=dashes(), legend=legend())
    shape = alt.Shape("label:N", title=None, scale=alt.Scale(range=list(SHAPES)), legend=legend())
    line = base.mark_line(strokeWidth=1.8).encode(x, y, color(), dash, detail="label:N")
    marks = base.transform_filter("datum.mark").mark_point(size=46, filled=True, opacity=1)
    return alt.layer(line, marks.encode(x, y, color(), shape, tooltip=tips("label:N", x.shorthand, y.shorthand)))


def beyond(base: alt.Chart, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Triangles at the ends of the axis for values outside of it, which have a `<field>_beyond`."""
    name = y.shorthand.partition(":")[0]
    return [
        base.transform_filter(f"datum.{name}_beyond === '{side}'")
        .mark_point(size=40, filled=True, opacity=1, shape=shape)
        .encode(x, y, color(), tooltip=tips("label:N", x.shorthand))
        for side, shape in (("above", "triangle-up"), ("below", "triangle-down"))
    ]


def part_order() -> str:
    """Vega expression for the position of a part in a bar."""
    return f"indexof({list(PARTS)}, datum.part)"


def part_color(parts: Sequence[str]) -> alt.Color:
    """Colours and legend of the parts of a step's time."""
    names = "{" + ", ".join(f"'{part}': '{name}'" for part, (name, _) in PARTS.items()) + "}"
    return alt.Color(
        "part:N",
        title=None,
        scale=alt.Scale(domain=list(parts), range=[PARTS[part][1] for part in parts]),
        legend=alt.Legend(orient="top", labelExpr=f"{names}[datum.label]", columns=5, labelLimit=200),
    )


def finish(chart: Chart, width: int, height: int) -> Chart:
    """A chart of this size with the common configuration."""
    return configured(chart.properties(width=width, height=height))


def configured(chart: Any) -> Chart:
    """A chart with the configuration that all figures share."""
    font = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
    axis = {"gridColor": "#E4E4E4", "domainColor": "#555555", "tickColor": "#555555", "labelFontSize": 11}
    configured: Chart = chart.configure(
        background="white",
        font=font,
        padding=6,
        axis={**axis, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8},
        legend={"labelFontSize": 11, "orient": "right", "rowPadding": 4},
        header={"labelFontSize": 11},
        view={"stroke": "#BBBBBB"},
    )
    return configured

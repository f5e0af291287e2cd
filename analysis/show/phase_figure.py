"""When the watched detectors of critical phases fire, as a figure."""

from __future__ import annotations

import altair as alt

from hpclbfl.analysis.show.style import COLORS, ROWS, Chart, configured, dashes, legend, rows, tips


def critical_phases(width: int = 520, height: int = 150) -> Chart:
    """When the watched detectors fire, below the gradient's norm, of one run per arm (`detectors.raster`).

    Bars: steps in which a detector fires, paler where only some of a stretch do; grey: its change is not known.
    """
    x = alt.X("x:Q", title="optimizer steps", axis=alt.Axis(tickCount=6), scale=alt.Scale(nice=False, zero=True))
    y = alt.Y(
        "norm:Q",
        title="gradient norm |G| (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=6),
        axis=alt.Axis(format="~g", labelOverlap=True, tickCount=4),
    )
    norms = rows().transform_filter("isValid(datum.norm)").mark_line(strokeWidth=1.5)
    dash = alt.StrokeDash("label:N", title=None, scale=dashes(), legend=legend(2))
    norm = norms.encode(x, y, _color(legend(2)), dash, tooltip=tips("label:N", "x:Q", "norm:Q"))
    begin = alt.X("begin:Q", title="optimizer steps", axis=alt.Axis(tickCount=6), scale=alt.Scale(nice=False))
    name = alt.Y(
        "detector:N",
        title=None,
        sort=alt.EncodingSortField("place", op="min"),
        axis=alt.Axis(labelLimit=220, domain=False, ticks=False),
    )
    about = tips("label:N", "detector:N", "begin:Q", "end:Q", "share:Q")
    unknown = (
        alt.Chart()
        .transform_filter("isValid(datum.detector) && !isValid(datum.share)")
        .mark_bar(color="#D9D9D9", height={"band": 0.3})
        .encode(begin, alt.X2("end:Q"), name)
    )
    # Of all steps, so that both panels begin and end alike.
    known = (
        alt.Chart()
        .transform_filter("isValid(datum.share)")
        .mark_bar(color="#D9D9D9", height={"band": 0.06})
        .encode(begin, alt.X2("end:Q"), name)
    )
    fires = (
        alt.Chart()
        .transform_filter("datum.share > 0")
        .mark_bar(height={"band": 0.8})
        .encode(
            begin,
            alt.X2("end:Q"),
            name,
            _color(None),
            alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.15, 1]), legend=None),
            tooltip=about,
        )
    )
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelLimit=600)
    bars = alt.layer(known, unknown, fires).properties(width=width, height=alt.Step(17))
    rasters = bars.facet(row=alt.Row("label:N", header=header), data=alt.NamedData(ROWS), spacing=14)
    both = alt.concat(norm.properties(width=width, height=height), rasters, columns=1, spacing=10)
    return configured(both.resolve_scale(color="independent", strokeDash="independent"))


def _color(shown: alt.Legend | None) -> alt.Color:
    return alt.Color("label:N", title=None, scale=alt.Scale(range=list(COLORS)), legend=shown)

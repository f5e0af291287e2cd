"""The figure of test accuracy against sharpness (Fig. 3); its rows come from `eigenvalues`."""

from __future__ import annotations

import altair as alt

from hpclbfl.analysis.style import SHAPES, Chart, color, finish, legend, loose, rows, tips


def accuracy_by_sharpness(width: int = 520, height: int = 300) -> Chart:
    """Test accuracy against the Hessian's top eigenvalue, a mark per run (Fig. 3); bars are residuals.

    A pale mark's eigenvalue has not settled. On a logarithmic axis; how many runs it has no place for is written into
    the figure.
    """
    y = alt.Y("top1:Q", title="test accuracy (%)", scale=loose())
    title = "top eigenvalue of the training loss's Hessian (log scale)"
    x = alt.X(
        "eigenvalue:Q",
        title=title,
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format="~g", labelOverlap=True),
    )
    shape = alt.Shape("label:N", title=None, scale=alt.Scale(range=list(SHAPES)), legend=legend())
    about = tips("label:N", "run:N", "step:Q", "eigenvalue:Q", "residual:Q", "has_settled:N", "top1:Q")
    positive = rows().transform_filter("datum.eigenvalue > 0")
    bars = positive.mark_rule(strokeWidth=1.2).encode(alt.X("low:Q", title=title), alt.X2("high:Q"), y, color())
    opacity = alt.condition("datum.has_settled === false", alt.value(0.3), alt.value(0.9))
    marks = positive.mark_point(size=64, filled=True).encode(x, y, color(), shape, opacity=opacity, tooltip=about)
    left_out = (
        rows()
        .transform_filter("datum.eigenvalue <= 0")
        .transform_aggregate(runs="count()")
        .transform_filter("datum.runs > 0")
        .transform_calculate(text="'runs without a positive eigenvalue, not drawn: ' + datum.runs")
        .mark_text(align="left", baseline="bottom", fontSize=11)
        .encode(x=alt.value(6), y=alt.value(height - 4), text="text:N")
    )
    return finish(alt.layer(bars, marks, left_out), width, height)

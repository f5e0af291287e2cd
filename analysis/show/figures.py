"""The figures: one altair definition each, shared by the interactive page and the picture files.

A definition holds no data. It refers to a data set named `rows`, which `style.fill` (and on the page its own script)
fills with a table of `plot_data`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import altair as alt

from hpclbfl.analysis.measure.metrics import AXES, Axis
from hpclbfl.analysis.measure.teaching import CAPTURED_PANEL, NOISE_PANEL
from hpclbfl.analysis.show.phase_figure import critical_phases
from hpclbfl.analysis.show.style import (
    PARTS,
    ROWS,
    SHAPES,
    Chart,
    beyond,
    color,
    configured,
    dashes,
    finish,
    legend,
    line,
    loose,
    part_color,
    part_order,
    rows,
    tips,
)

_X_TITLES: dict[Axis, str] = {
    "steps": "optimizer steps",
    "samples": "samples processed by all clients",
    "seconds": "training time (s)",
}


def learning_curves(axis: Axis, width: int = 520, height: int = 300) -> Chart:
    """Test accuracy over steps, samples or seconds (Fig. 7, 8), mean over seeds with its 95 % interval."""
    x = alt.X("x:Q", title=_X_TITLES[axis], axis=alt.Axis(format="~s" if axis == "samples" else "~r", tickCount=6))
    title = "test accuracy (%)"
    band = (
        rows()
        .mark_area(opacity=0.14)
        .encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), color(), detail="label:N")
    )
    return finish(band + line(rows(), x, alt.Y("mean:Q", title=title, scale=loose())), width, height)


def gradient_norm(width: int = 280, height: int = 230) -> Chart:
    """Gradient norm and its sum over steps (Fig. 6), and its relative change (Eq. 8); thresholds as grey lines.

    Values outside a logarithmic axis are triangles at its end (see `plot_data.gradients`).
    """
    x = alt.X("x:Q", title="optimizer steps", axis=alt.Axis(tickCount=4))
    logarithmic: Any = {"scale": alt.Scale(type="log", nice=False), "axis": alt.Axis(format="~g", labelOverlap=True)}
    norm = alt.Y("norm:Q", title="gradient norm |G|, mean (log scale)", **logarithmic)
    total = alt.Y("cumulative_norm:Q", title="cumulative gradient norm", scale=alt.Scale(zero=True))
    title = "change of |G|² (log scale; grey: threshold)"
    change = alt.Y("change:Q", title=title, **logarithmic)
    changes = rows().transform_filter("isValid(datum.change)")
    thresholds = rows().transform_filter("datum.threshold > 0").transform_aggregate(groupby=["threshold"])
    y = alt.Y("threshold:Q", title=title, **logarithmic)
    rule = thresholds.mark_rule(color="#777777", strokeWidth=1.5).encode(y, tooltip=tips("threshold:Q"))
    panels = (
        alt.layer(line(rows(), x, norm), *beyond(rows(), x, norm)),
        line(rows(), x, total),
        alt.layer(rule, line(changes, x, change), *beyond(changes, x, change)),
    )
    sized = (panel.properties(width=width, height=height) for panel in panels)
    return configured(alt.concat(*sized, columns=3, spacing=24))


def scale_factor(width: int = 520, height: int = 240) -> Chart:
    """Kernel density of the scale factor over the steps (Fig. 7b, 7d, 8b); labels hold the share of steps at X."""
    ticks = [2.0**k for k in range(8)]
    x = alt.X(
        "factor:Q",
        title="scale factor of a step (log scale)",
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(values=ticks, format="~r"),
    )
    y = alt.Y("density:Q", title="density of steps per octave", scale=alt.Scale(zero=True))
    area = rows().mark_area(opacity=0.08).encode(x, y.stack(None), color(), detail="label:N")
    return finish(area + line(rows(), x, y.stack(None)), width, height)


def teacher(width: int = 400, height: int = 230) -> Chart:
    """How much the teacher changes the gradient, and how much of fresh gradients it predicts (Eq. 5)."""
    x = alt.X("x:Q", title="optimizer steps", axis=alt.Axis(tickCount=4))
    noise = alt.Y(
        "value:Q",
        title="|A(G) - G|² / |G|² (log scale)",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format="~g", labelOverlap=True),
    )
    captured = alt.Y("value:Q", title="share of fresh gradients predicted", scale=loose())
    # Nothing is 0 on a logarithmic axis.
    panels = (
        line(rows().transform_filter(f"datum.panel == '{NOISE_PANEL}' && datum.value > 0"), x, noise),
        line(rows().transform_filter(f"datum.panel == '{CAPTURED_PANEL}'"), x, captured),
    )
    return configured(alt.concat(*(p.properties(width=width, height=height) for p in panels), columns=2, spacing=24))


def time_shares(parts: Sequence[str] = tuple(PARTS), width: int = 480) -> Chart:
    """Where a step's time goes (Eq. 2): one bar per arm, mean over seeds."""
    base = rows().transform_calculate(order=part_order())
    y = alt.Y("label:N", title=None, axis=alt.Axis(labelLimit=260, domain=False, ticks=False))
    x = alt.X(
        "share:Q",
        title="share of the step's time (%)",
        stack="zero",
        scale=alt.Scale(domain=[0, 100]),
        axis=alt.Axis(tickCount=10),
    )
    bars = base.mark_bar(stroke="#333333", strokeWidth=0.6, height={"band": 0.7}).encode(
        x, y, part_color(parts), alt.Order("order:Q"), tooltip=tips("label:N", "part:N", "share:Q")
    )
    text = (
        base.transform_stack(stack="share", groupby=["label"], sort=[alt.SortField("order")], as_=["begin", "end"])
        .transform_filter("datum.share >= 7")
        .transform_calculate(middle="(datum.begin + datum.end) / 2")
        .mark_text(fontSize=11)
        .encode(
            alt.X("middle:Q", title="share of the step's time (%)"),
            y,
            alt.Text("share:Q", format=".0f"),
            color=alt.condition("datum.part == 'compute'", alt.value("white"), alt.value("black")),
        )
    )
    return configured((bars + text).properties(width=width, height=alt.Step(30)))


def batches_and_waits(parts: Sequence[str] = tuple(PARTS), width: int = 300, height: int = 120) -> Chart:
    """Local batches over steps, and the time of a step on each client, which shows stragglers.

    One run per arm. Its rows are those of `plot_data.batch_sizes` and `plot_data.client_times` together.
    """
    by_client = alt.EncodingSortField("client", op="min")
    batch = (
        alt.Chart()
        .transform_filter("isValid(datum.local_batch_size)")
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickCount=4)),
            alt.Y(
                "local_batch_size:Q",
                title="local batch (samples)",
                scale=alt.Scale(domainMin=0, nice=4),
                axis=alt.Axis(tickCount=4),
            ),
            alt.Color(
                "clients:N", title="clients", sort=by_client, scale=alt.Scale(scheme="viridis"), legend=legend(2)
            ),
            alt.StrokeDash("clients:N", title="clients", sort=by_client, scale=dashes(), legend=legend(2)),
            tooltip=tips("label:N", "clients:N", "step:Q", "local_batch_size:Q"),
        )
    )
    times = (
        alt.Chart()
        .transform_filter("isValid(datum.ms)")
        .transform_calculate(order=part_order())
        .mark_bar(stroke="#333333", strokeWidth=0.4)
        .encode(
            alt.X(
                "ms:Q",
                title="mean time of a step (ms)",
                stack="zero",
                scale=alt.Scale(domainMin=0),
                axis=alt.Axis(tickCount=6),
            ),
            alt.Y("client:O", title="client", axis=alt.Axis(labelOverlap=True)),
            part_color(parts),
            alt.Order("order:Q"),
            tooltip=tips("label:N", "client:O", "part:N", "ms:Q"),
        )
    )
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelLimit=600)
    facets = [
        panel.properties(width=width, height=height)
        .facet(row=alt.Row("label:N", header=header), data=alt.NamedData(ROWS), spacing=14)
        .resolve_scale(y="independent")
        for panel in (batch, times)
    ]
    panels = alt.concat(*facets, columns=2, spacing=40)
    return configured(panels.resolve_scale(color="independent", strokeDash="independent"))


def final_accuracy(width: int = 480) -> Chart:
    """Final test accuracy: mean over seeds with its 95 % interval, single runs as open circles."""
    title = "final test accuracy (%)"
    y = alt.Y("label:N", title=None, axis=alt.Axis(labelLimit=260, grid=True))
    x = alt.X("mean:Q", title=title, scale=loose(), axis=alt.Axis(tickCount=8))
    seeds = rows().transform_filter("datum.kind == 'seed'").mark_point(size=26, filled=False, opacity=0.7, yOffset=8)
    mean = rows().transform_filter("datum.kind == 'mean'")
    interval = mean.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), alt.X2("high:Q"), y)
    ends = [
        mean.mark_tick(thickness=2, size=11).encode(alt.X(f"{end}:Q", title=title), y, color=alt.value("black"))
        for end in ("low", "high")
    ]
    dots = mean.mark_point(size=75, filled=True, color="black", opacity=1).encode(
        x, y, tooltip=tips("label:N", "mean:Q", "low:Q", "high:Q")
    )
    layers = alt.layer(seeds.encode(x, y, color=alt.value("#0072B2")), interval, *ends, dots)
    return configured(layers.properties(width=width, height=alt.Step(34)))


def accuracy_by_sharpness(width: int = 520, height: int = 300) -> Chart:
    """Test accuracy against the top eigenvalue of the Hessian, one mark per run (Fig. 3); bars are residuals.

    Pale marks: the eigenvalue has not converged. The axis is logarithmic; the figure states how many runs have no
    positive eigenvalue.
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


_CHARTS: dict[str, Callable[..., Chart]] = {
    **{f"learning_curves_{axis}": partial(learning_curves, axis) for axis in AXES},
    "final_accuracy": final_accuracy,
    "sharpness": accuracy_by_sharpness,
    "gradient_norm": gradient_norm,
    "critical_phases": critical_phases,
    "scale_factor": scale_factor,
    "teacher": teacher,
    "time_shares": time_shares,
    "batches_and_waits": batches_and_waits,
}
FIGURES = tuple(_CHARTS)
"""Names of all figures, in the order of the page."""


@cache
def definition(name: str, parts: tuple[str, ...] = tuple(PARTS)) -> dict[str, Any]:
    """A figure's Vega-Lite definition, validated, without data. It is cached: do not change it.

    Args:
        parts: of a step's time that the data have; the legend shows only these.
    """
    make = _CHARTS[name]
    return dict((make(parts) if make in (time_shares, batches_and_waits) else make()).to_dict())

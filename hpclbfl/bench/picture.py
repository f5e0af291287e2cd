"""A benchmark's findings as a picture: medians by batch size with intervals over rounds."""

from __future__ import annotations

import json
from pathlib import Path

import altair as alt
import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hpclbfl.bench.findings import Findings
from hpclbfl.core.files import write_output

_SIZE_PX = {"width": 240, "height": 240}


def by_batch(findings: Findings, path: Path) -> None:
    """Write a .png: a panel for each point of training, a line for each compressor, whose group is `NAME, step N`.

    Bars are 95 % intervals of the mean over rounds, by Student's distribution, where there are at least two.
    """
    import vl_convert

    points = []
    for series in findings.series:
        name, _, stage = series.group.rpartition(", ")
        values = np.array(series.by_round)
        half = _half_width(values)
        points.append(
            {
                "compressor": name,
                "stage": stage,
                "batch": int(series.variant),
                "phi": float(values.mean()),
                "low": float(values.mean() - half),
                "high": float(values.mean() + half),
            }
        )
    names = list(dict.fromkeys(str(point["compressor"]) for point in points))
    stages = sorted({str(point["stage"]) for point in points}, key=lambda stage: int(stage.split()[-1]))
    x = alt.X("batch:Q", scale=alt.Scale(type="log", base=2), title="batch size b, samples")
    color = alt.Color("compressor:N", sort=names, title=None)
    panels = []
    for stage in stages:
        data = alt.InlineData(values=[point for point in points if point["stage"] == stage])
        base = alt.Chart(data, title=stage).properties(**_SIZE_PX)
        line = base.mark_line(point=True).encode(x=x, y=alt.Y("phi:Q", title="phi(b), %"), color=color)
        bars = base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=x, y="low:Q", y2="high:Q", color=color)
        panels.append(alt.layer(line, bars))
    chart = alt.hconcat(*panels).resolve_scale(y="shared").properties(title=findings.title)
    write_output(path, vl_convert.vegalite_to_png(json.dumps(chart.to_dict()), scale=2))


def _half_width(values: NDArray[np.float64]) -> float:
    count = len(values)
    if count < 2:
        return 0.0
    return float(stdtrit(count - 1, 0.975) * values.std(ddof=1) / count**0.5)

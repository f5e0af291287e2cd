"""A benchmark's findings as a file and as tables."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.statistics import spread
from hpclbfl.core.console import make_console
from hpclbfl.core.table import DataTable
from hpclbfl.core.text import cell
from hpclbfl.runs.provenance import collect

SCHEMA_VERSION = 1
FOLDER = Path("runs") / "bench"


def default_path(name: str) -> Path:
    """The default file of a benchmark: runs/bench/NAME-TIME.json, UTC."""
    return FOLDER / f"{name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"


def document(name: str, settings: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """All measurements with settings, machine and versions, as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "settings": settings,
        **findings.plain(),
        **findings.extra,
        "machine": collect("by variant", int(settings.get("num_ranks", 1))),
    }


def as_text(found: dict[str, Any]) -> str:
    """The document as JSON."""
    return json.dumps(found, indent=1) + "\n"


def print_tables(findings: Findings) -> None:
    """Medians with quartiles over rounds, then the ratios."""
    console = make_console()
    table = DataTable(title=findings.title)
    for name in ("", "median", "quartiles", "unit", "rounds"):
        table.add_column(name, justify="left" if name in ("", "unit") else "right")
    ratios = DataTable(title="Ratios, 95 % interval, paired by round", box=None, show_header=False)
    ratios.add_column("")
    ratios.add_column("", no_wrap=True)
    for group in dict.fromkeys(series.group for series in findings.series):
        table.add_row(cell(group, "bold"))
        for series in (s for s in findings.series if s.group == group):
            s = spread(series.by_round)
            quartiles = f"{_shown(s.lower_quartile)} to {_shown(s.upper_quartile)}"
            unit = "" if series.unit == "1" else series.unit
            table.add_row(f"  {series.title}", _shown(s.median), quartiles, unit, str(len(series.raw)))
        for k, c in enumerate(c for c in findings.comparisons if c.group == group):
            if k == 0:
                ratios.add_row(cell(group, "bold"))
            ratios.add_row(f"  {c.title}", c.text)
    console.print(table)
    if findings.comparisons:
        console.print(ratios)


def _shown(number: float) -> str:
    """Three digits; thousands in full."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"

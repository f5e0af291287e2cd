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
    """Where a benchmark's file goes unless the user says otherwise: runs/bench/NAME-TIME.json, UTC."""
    return FOLDER / f"{name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"


def document(name: str, settings: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """All that was measured, where and with what, as JSON values."""
    num_ranks = int(settings.get("num_ranks", 1))
    machine = collect("by variant", num_ranks)
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "settings": settings,
        **findings.plain(),
        **findings.extra,
        "machine": machine,
    }


def as_text(found: dict[str, Any]) -> str:
    """The document as JSON."""
    return json.dumps(found, indent=1) + "\n"


def print_tables(findings: Findings) -> None:
    """Medians with quartiles over rounds, then the ratios."""
    console = make_console()
    table = DataTable(title=findings.title)
    table.add_column("")
    for name in ("median", "quartiles"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    table.add_column("rounds", justify="right")
    groups = list(dict.fromkeys(series.group for series in findings.series))
    for group in groups:
        members = [series for series in findings.series if series.group == group]
        table.add_row(cell(group, "bold"))
        for series in members:
            s = spread(series.by_round)
            quartiles = f"{_shown(s.lower_quartile)} to {_shown(s.upper_quartile)}"
            unit = "" if series.unit == "1" else series.unit
            table.add_row(f"  {series.title}", _shown(s.median), quartiles, unit, str(len(series.raw)))
    console.print(table)
    if not findings.comparisons:
        return
    title = "Ratios, 95 % interval, paired by round"
    ratios = DataTable(title=title, box=None, show_header=False)
    ratios.add_column("")
    ratios.add_column("", no_wrap=True)
    for group in groups:
        members_of = [c for c in findings.comparisons if c.group == group]
        if members_of:
            ratios.add_row(cell(group, "bold"))
        for c in members_of:
            ratios.add_row(f"  {c.title}", c.text)
    console.print(ratios)


def _shown(number: float) -> str:
    """Three digits; thousands in full."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"

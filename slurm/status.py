"""The command `hpclbfl status`: the state of each run of a sweep, as a table or as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from hpclbfl.core.console import make_console
from hpclbfl.core.text import cell
from hpclbfl.runs.log.coverage import NO_LIMIT
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.state import RunState, run_states

_STYLES = {"done": "green", "running": "cyan", "failed": "bold red", "waiting": "dim"}


def status_rows(directory: Path) -> list[dict[str, Any]]:
    """One row per run of a sweep.

    Columns: run, path, state (done, running, failed, waiting), step (number of finished ones), epoch, top1 (0 to 1),
    job (the Slurm job that runs it or will), text (one line), overrides, listed (whether the sweep file still has it).

    Raises:
        ConfigError: not the folder of a sweep.
    """
    folder = SweepFolder(directory)
    return [_row(folder, state) for state in run_states(folder, folder.entries())]


def _row(folder: SweepFolder, state: RunState) -> dict[str, Any]:
    entry = state.entry
    return {
        "run": entry.id,
        "path": str(folder.run(entry.id).path),
        "state": state.word,
        "step": _number(state.step),
        "epoch": _number(state.epoch),
        "top1": _number(state.top1),
        "job": state.job,
        "text": state.text,
        "overrides": entry.overrides,
        "listed": entry.listed,
    }


def _number(value: Any) -> float | None:
    """A number from a run's files; None for anything that is not a number within bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) and abs(value) < NO_LIMIT else None


def print_status(directory: Path, as_json: bool) -> None:
    """Print the runs of a sweep to stdout, as a table or as JSON.

    Raises:
        ConfigError: not the folder of a sweep.
    """
    if as_json:
        sys.stdout.write(json.dumps(status_rows(directory), indent=2) + "\n")
        return
    from hpclbfl.core.table import DataTable

    folder = SweepFolder(directory)
    states = run_states(folder, folder.entries())
    console = make_console()
    table = DataTable(title=f"Sweep in {directory}")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("", overflow="fold")
    for state in states:
        hash_ = state.entry.id.rpartition("-")[2]
        name = f"{hash_} {state.entry.label}" if state.entry.overrides else state.entry.id
        table.add_row(
            cell(name if state.entry.listed else f"{name} (no longer in the sweep file)"),
            cell(state.word, _STYLES[state.word]),
            "-" if (step := _number(state.step)) is None else cell(step),
            "-" if (top1 := _number(state.top1)) is None else f"{100 * top1:.1f} %",
            cell(state.text),
        )
    console.print(table)
    counts = Counter[str](state.word for state in states)
    console.print(", ".join(f"{counts[word]} {word}" for word in _STYLES if counts[word]) or "no runs")

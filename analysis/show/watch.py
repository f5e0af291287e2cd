"""A live table of runs while they train: `hpclbfl watch DIR`.

Of each run only the newest rows of rank 0 are read, and only if its log changed, also while it is written (SWMR).
"""

from __future__ import annotations

import math
import stat
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Group
from rich.live import Live
from rich.text import Text

from hpclbfl.analysis.read.records import Done, Status, read_record
from hpclbfl.analysis.read.scan import find_runs, run_keys, unstarted
from hpclbfl.core.console import make_console
from hpclbfl.core.errors import DataError
from hpclbfl.core.table import DataTable
from hpclbfl.core.text import cell
from hpclbfl.runs.lock import LOST, find_lost
from hpclbfl.runs.log.reader import Table, TornFile, read_last_rows

REFRESH_S = 2.0
LINES_EVERY_S = 30.0
"""Interval without a terminal."""
RECENT_STEPS = 50
"""Steps over which loss and speed are averaged."""
SILENT_S = 120.0
"""A running run that has logged nothing for this long is marked."""

_COLUMNS = {"state": 7, "step": 6, "epoch": 6, "loss": 6, "top-1": 7, "steps/s": 7, "silent": 6}
"""Columns with their least widths."""
_STYLES = {
    "running": "bold",
    "failed": "red",
    "unreadable": "red",
    "requeue": "yellow",
    "waiting": "dim",
    "done": "green",
}
_ORDER = tuple(_STYLES)
_OVER = ("done", "failed", "unreadable")
_FAR = 1e9
_Record = TypeVar("_Record", Status, Done)


@dataclass(frozen=True)
class Progress:
    """Progress of a run, from rank 0's newest log; NaN: not known."""

    steps: int = 0
    """Finished optimizer steps."""
    epoch: float = math.nan
    loss: float = math.nan
    """Mean training loss of rank 0's clients over the last RECENT_STEPS steps, nats."""
    top1: float = math.nan
    """Last test accuracy, 0 to 1."""
    steps_per_s: float = math.nan
    """Over the same steps, without evaluation and checkpoints."""


@dataclass(frozen=True)
class Watched:
    """A run as the table shows it."""

    run: str
    state: str
    """running, failed, requeue, done, waiting (no attempt yet) or unreadable."""
    progress: Progress
    silent_s: float
    """Time since its log changed; NaN without one."""
    text: str
    """Why it failed, or which file cannot be read."""


class Watcher:
    """Reads the progress of all runs below a folder, repeatedly."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        self._known: dict[Path, tuple[tuple[int, int], Progress]] = {}
        self.notes: list[str] = []
        """Folders and sweep.json that could not be read by the last `look`, a line each."""

    def look(self) -> list[Watched]:
        """All runs: running ones first, then failed, stopped, waiting and done ones.

        Raises:
            DataError: there is no such folder, or it holds no run.
        """
        notes: list[str] = []
        paths = run_keys(find_runs(self._root, notes), self._root)
        runs = [self._run(key, path) for key, path in paths.items()]
        lost = find_lost(paths[run.run] for run in runs if run.state == "running")
        runs = [replace(run, state="failed", text=LOST) if paths[run.run] in lost else run for run in runs]
        waiting, why_not = unstarted(self._root)
        self.notes = notes + ([why_not] if why_not else [])
        runs += [Watched(name, "waiting", Progress(), math.nan, "") for name in waiting]
        if not runs:
            raise DataError(f"{self._root}: holds no run; a run folder has a config.yaml, 'hpclbfl train' makes one")
        return sorted(runs, key=lambda run: (_ORDER.index(run.state), run.run))

    def _run(self, key: str, path: Path) -> Watched:
        try:
            status, done = _read(path / "status.json", Status), _read(path / "DONE.json", Done)
        except DataError as error:
            status, done = Status("unreadable", str(error)), None
        word = "done" if done is not None else status.state if status is not None else "waiting"
        progress, silent_s = Progress(), math.nan
        for attempt in reversed(_attempts(path)):
            log = attempt / "rank00000.h5"
            with suppress(OSError):
                about = log.stat()
                if not stat.S_ISREG(about.st_mode):
                    # Opening a pipe without a writer would block.
                    continue
                silent_s = time.time() - about.st_mtime if math.isnan(silent_s) else silent_s
                older = self._progress(log, (about.st_size, about.st_mtime_ns))
                # An attempt that has just resumed has logged nothing yet.
                progress = replace(progress if progress.steps else older, top1=_number(progress.top1, older.top1))
            if progress.steps and not math.isnan(progress.top1):
                break
        if done is not None:
            steps = progress.steps if done.step is None else done.step
            epoch, top1 = _number(done.epoch, progress.epoch), _number(done.top1, progress.top1)
            progress = replace(progress, steps=steps, epoch=epoch, top1=top1)
        text = (status.error or "") if status is not None and word in ("failed", "unreadable") else ""
        return Watched(key, word if word in _ORDER else "waiting", progress, silent_s, text)

    def _progress(self, log: Path, stamp: tuple[int, int]) -> Progress:
        known = self._known.get(log)
        if known is None or known[0] != stamp:
            known = (stamp, read_progress(log) or (known[1] if known else Progress()))
            self._known[log] = known
        return known[1]


def read_progress(log: Path) -> Progress | None:
    """Progress from a log, also while it is written; None if it cannot be read."""
    try:
        rows = read_last_rows(log, {"steps": 5000, "evals": 50})
    except TornFile:
        return None
    return progress_of(rows["steps"], rows["evals"])


def progress_of(steps: Table, evals: Table) -> Progress:
    """Progress from the newest rows of one rank's tables."""
    tests = evals["top1"][evals["split"] == b"test"]
    top1 = float(tests[-1]) if len(tests) else math.nan
    if not len(steps):
        return Progress(top1=top1)
    last = int(steps["step"][-1])
    # Of the first step that was read some clients' rows may be missing.
    recent = steps[(steps["step"] > last - RECENT_STEPS) & ((steps["step"] > steps["step"][0]) | (steps["step"] == 0))]
    recent = recent if len(recent) else steps[steps["step"] == last]
    seen = recent[recent["local_batch_size"] > 0]
    samples, took = seen["local_batch_size"].sum(), float(np.nansum(recent["t_step_s"]))
    return Progress(
        steps=last + 1,
        epoch=float(steps["epoch"][-1]),
        loss=float((seen["loss"] * seen["local_batch_size"]).sum() / samples) if samples else math.nan,
        top1=top1,
        # Clients on a rank run one after the other: their rows add up to its time.
        steps_per_s=len(np.unique(recent["step"])) / took if took > 0 else math.nan,
    )


def watch(directory: Path, once: bool = False) -> None:
    """Print the runs below a folder, live on a terminal, else every 30 s; ends when all are done or failed.

    Raises:
        DataError: there is no such folder, or it holds no run.
    """
    watcher = Watcher(directory)
    console = make_console()
    runs = watcher.look()
    if once or not sys.stdout.isatty():
        console.print(table_of(runs, directory, notes=watcher.notes))
        while not once and not _is_over(runs):
            time.sleep(LINES_EVERY_S)
            runs = watcher.look()
            console.print(table_of(runs, directory, notes=watcher.notes))
        return
    with (
        Live(table_of(runs, directory, console.height, watcher.notes), console=console, auto_refresh=False) as live,
        suppress(KeyboardInterrupt),
    ):
        while not _is_over(runs):
            time.sleep(REFRESH_S)
            runs = watcher.look()
            live.update(table_of(runs, directory, console.height, watcher.notes), refresh=True)


def table_of(runs: list[Watched], directory: Path, height: int | None = None, notes: Sequence[str] = ()) -> Group:
    """The table, with as many runs as fit on a screen of `height` lines, the count of each state, and notes."""
    room = len(runs) if height is None else max(1, height - 8 - len(notes))
    table = DataTable(title=f"Runs in {directory}")
    for name, width in _COLUMNS.items():
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True, min_width=width)
    # On a screen each run takes one line, for which only this column is cut.
    table.add_column("run", overflow="fold" if height is None else "ellipsis", no_wrap=height is not None)
    for run in runs[:room]:
        p = run.progress
        silent = f"{run.silent_s:.0f} s" if run.state == "running" and not math.isnan(run.silent_s) else ""
        table.add_row(
            Text(run.state, _STYLES[run.state]),
            str(p.steps) if p.steps else "-",
            *(_shown(value, how) for value, how in ((p.epoch, ".2f"), (p.loss, ".3f"))),
            _shown(100 * p.top1, ".1f", " %"),
            _shown(p.steps_per_s, ".3g"),
            Text(silent, "red" if silent and run.silent_s > SILENT_S else ""),
            cell(run.run + (f": {run.text}" if run.text else "")),
        )
    counts = Counter(run.state for run in runs)
    more = f"; {len(runs) - room} more not shown" if len(runs) > room else ""
    summary = Text(", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state]) + more)
    return Group(table, summary, *map(cell, notes))


def _is_over(runs: list[Watched]) -> bool:
    return all(run.state in _OVER for run in runs)


def _shown(value: float, how: str, unit: str = "") -> str:
    if math.isnan(value):
        return "-"
    # Absurd values would fill the screen with digits.
    return format(value, how if abs(value) < _FAR else ".3g") + unit


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or math.isnan(value) else value


def _attempts(run: Path) -> list[Path]:
    """Folders of a run's attempts, the oldest first."""
    with suppress(OSError):
        return sorted((run / "attempts").glob("[0-9]*"), key=lambda path: (len(path.name), path.name))
    return []


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return read_record(path, kind)
    except FileNotFoundError:
        return None

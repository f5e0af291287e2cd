"""How far a run is: a bar on a terminal, a line per 30 s elsewhere, from rank 0 alone, on stderr."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from hpclbfl.errors import RunFailed

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_S = 30.0
TERMINAL_COLUMNS = "HPCLBFL_TERMINAL_COLUMNS"
"""Environment variable: this process's stderr ends on a terminal of so many columns."""


def result_console(num_ranks: int) -> Console:
    """Where rank 0 prints tables to."""
    from rich.console import Console

    if num_ranks == 1:
        return Console()
    # mpirun gives its ranks a terminal of its own, wherever their output ends.
    columns = os.environ.get(TERMINAL_COLUMNS, "")
    return Console(force_terminal=False, width=int(columns) if columns.isdigit() else 100)


class Progress:
    """Shows the epoch, loss and accuracy of a run.

    Args:
        total_epochs: where the run ends at the latest; None when time alone ends it.
        visible: False on ranks other than 0.
        log: gets every line, too.
    """

    def __init__(self, title: str, total_epochs: float | None, visible: bool, log: TextIO | None = None) -> None:
        self._title, self._total, self._visible, self._log = title, total_epochs, visible, log
        self._last_line = self._begin = time.monotonic()
        self._top1: float | None = None
        self._bar = None
        # Under mpirun stderr is a pipe; `hpclbfl launch` says how wide the terminal at its other end is.
        columns = os.environ.get(TERMINAL_COLUMNS, "")
        if visible and (sys.stderr.isatty() or columns):
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True, force_terminal=True, width=int(columns) if columns.isdigit() else None),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total_epochs, text="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, epoch: float, loss: float) -> None:
        """After every step; cheap when nothing is due."""
        if not self._visible:
            return
        now = time.monotonic()
        if self._bar is None and now - self._last_line < LINE_EVERY_S:
            return
        text = self._text(step, epoch, loss)
        if self._bar is not None:
            self._bar.update(self._task, completed=epoch, text=text)
        else:
            self.say(f"{text}  {now - self._begin:.0f} s")
            self._last_line = now

    def evaluated(self, top1: float) -> None:
        """The newest test accuracy, a fraction."""
        self._top1 = top1

    def say(self, line: str) -> None:
        """One line above the bar, and into the log."""
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(f"{self._title}: {line}", file=sys.stderr, flush=True)
        if self._log is not None:
            try:
                print(line, file=self._log, flush=True)
            except OSError as error:
                raise RunFailed(f"{self._log.name}: cannot be written: {error.strerror}") from error

    def _text(self, step: int, epoch: float, loss: float) -> str:
        end = f"/{self._total:.4g}" if self._total is not None else ""
        top1 = f"  top-1 {100 * self._top1:.1f} %" if self._top1 is not None else ""
        return f"epoch {epoch:.2f}{end}  step {step}  loss {loss:.3f}{top1}"

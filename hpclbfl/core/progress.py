"""Progress of a run, from rank 0 only: a bar on a terminal, otherwise a line every 30 s."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hpclbfl.core.console import make_console
from hpclbfl.core.diagnostics import Diagnostics, shows, terminal
from hpclbfl.core.errors import RunFailed
from hpclbfl.core.text import printable, say

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_S = 30.0
TERMINAL_COLUMNS = "HPCLBFL_TERMINAL_COLUMNS"
"""Environment variable: width of the terminal that this process's stderr finally reaches."""


def result_console(num_ranks: int) -> Console:
    """The console for the tables of rank 0."""
    if num_ranks == 1:
        return make_console()
    # mpirun gives its ranks a terminal of its own, whatever its own output is.
    return make_console(force_terminal=False, width=_terminal_columns())


def _terminal_columns() -> int | None:
    columns = os.environ.get(TERMINAL_COLUMNS, "")
    return int(columns) if columns.isascii() and columns.isdigit() else None


class Progress(ExitStack):
    """Shows epoch, loss and accuracy of a run, as a bar if diagnostics go to a terminal, otherwise as lines.

    Args:
        title: of the run.
        total_epochs: where the run ends at the latest; None if only time ends it.
        visible: False on ranks other than 0.
        log: also receives every line, whatever the level of diagnostics.
    """

    def __init__(self, title: str, total_epochs: float | None, visible: bool, log: TextIO | None = None) -> None:
        super().__init__()
        self._title, self._total, self._visible, self._log = printable(title), total_epochs, visible, log
        self._logger = Diagnostics(__name__, title)
        self._last_line = self._begin = time.monotonic()
        self._score = ""
        self._bar = None
        # Under mpirun stderr is a pipe; `hpclbfl launch` passes on the width of the terminal at its other end.
        if visible and shows("info") and (sys.stderr.isatty() or os.environ.get(TERMINAL_COLUMNS)):
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=make_console(stderr=True, force_terminal=True, width=_terminal_columns()),
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=total_epochs, text="")

    def __enter__(self) -> Progress:
        handler = terminal()
        if self._bar is not None and handler is not None:
            self.enter_context(handler.above(self._title, self._bar.console.print))
            self.enter_context(self._bar)
        return self

    def step(self, step: int, epoch: float, loss: float) -> None:
        """Call after every step; cheap if nothing is due."""
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

    def evaluated(self, score: str) -> None:
        """What the newest evaluation came to, in a few words: `top-1 93.1 %`."""
        self._score = printable(score)

    def say(self, line: str) -> None:
        """Report one line and write it to the log."""
        if self._visible:
            self._logger.info(line)
            self._write(line)

    def warn(self, line: str) -> None:
        """Report one line with the prefix `warning: ` and write it to the log."""
        if self._visible:
            self._logger.warning(f"warning: {line}")
            self._write(f"warning: {line}")

    def _write(self, line: str) -> None:
        if self._log is None:
            return
        try:
            say(line, self._log)
            # A stream in memory has no name.
            if (name := getattr(self._log, "name", "")) and not Path(name).exists():
                raise RunFailed(f"{self._log.name}: was removed while it was written")
        except OSError as error:
            raise RunFailed(f"{self._log.name}: cannot be written: {error.strerror}") from error

    def _text(self, step: int, epoch: float, loss: float) -> str:
        end = f"/{self._total:.4g}" if self._total is not None else ""
        score = f"  {self._score}" if self._score else ""
        return f"epoch {epoch:.2f}{end}  step {step}  loss {loss:.3f}{score}"

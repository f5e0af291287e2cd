"""Variants in turns, and how far they are: a bar on a terminal, a line per 30 s elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from hpclbfl.core.console import make_console
from hpclbfl.core.diagnostics import Diagnostics, shows

LINE_EVERY_S = 30.0


class Turns:
    """Deals out turns and shows them.

    Args:
        name: of the benchmark.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger = Diagnostics(__name__, f"bench {name}")
        self._last_line = time.monotonic()
        self._bar = None
        if shows("info") and sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=make_console(stderr=True), transient=True)
            self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> Turns:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, variants: Sequence[str], num_rounds: int) -> Iterator[tuple[int, str]]:
        """Yield (round, variant), every variant once per round.

        The first of a round is another one each time, so that a drift within rounds favours none.
        """
        for number in range(num_rounds):
            for k in range(len(variants)):
                variant = variants[(number + k) % len(variants)]
                self._show(number * len(variants) + k, num_rounds * len(variants), f"round {number + 1}, {variant}")
                yield number, variant

    def _show(self, done: int, total: int, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{self._name}: {what}")
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._logger.info(f"{what} ({done} of {total} turns done)")

"""Variants in turns, and their progress: a bar on a terminal, a line per 30 s elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hpclbfl.core.console import make_console
from hpclbfl.core.diagnostics import Diagnostics, shows

LINE_EVERY_S = 30.0


class Turns:
    """Yields variants in turns and shows the progress of a benchmark, by name."""

    def __init__(self, name: str) -> None:
        self._name, self._logger = name, Diagnostics(__name__, f"bench {name}")
        self._last_line = time.monotonic()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn())
        console, is_shown = make_console(stderr=True), shows("info") and sys.stderr.isatty()
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not is_shown)
        self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> Turns:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, variants: Sequence[str], num_rounds: int) -> Iterator[tuple[int, str]]:
        """Yield (round, variant), every variant once per round.

        Each round starts with another variant, so that a drift within rounds favours none.
        """
        total = num_rounds * len(variants)
        for done in range(total):
            number, k = divmod(done, len(variants))
            variant = variants[(number + k) % len(variants)]
            what = f"round {number + 1}, {variant}"
            self._bar.update(self._task, completed=done, total=total, description=f"{self._name}: {what}")
            if self._bar.disable and time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                self._logger.info(f"{what} ({done} of {total} turns done)")
            yield number, variant

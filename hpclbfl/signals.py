"""Signals that ask a run to stop: noted by the handler, acted upon between two steps, by all ranks together."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGUSR2)
"""Slurm's and the shell's way to say that time is nearly up."""


class StopRequest:
    """While it is entered, signals that ask to stop are noted instead of ending the process."""

    def __init__(self) -> None:
        self.name = ""
        """Of the signal that came; empty while none has."""
        self._before: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> StopRequest:
        # Elsewhere Python allows no handlers; there is nobody to ask this run to stop, then.
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in ASKING}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(signum).name

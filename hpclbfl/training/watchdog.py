"""Detects ranks that hang or are gone: a rank that has waited too long names them and ends the run.

A thread of each rank writes, now and then, the rank's step and whether it waits for others to a small file in the
attempt's folder. A rank that has waited too long reads the others' notes: ranks that are not waiting, or whose notes
are stale, are missing.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import Field

from hpclbfl.core.errors import DataError
from hpclbfl.core.files import create
from hpclbfl.core.jsonfile import read_json
from hpclbfl.core.launched import launched_size
from hpclbfl.runs.folder import numbers_in

NOTE_EVERY_S = 10.0
"""Longest time between two notes."""
NOTE_BYTES = 4096
"""Longest note that is read."""


@contextmanager
def start_limit(timeout_s: float) -> Iterator[None]:
    """End this process if the block takes longer: for MPI's start, which hangs if a rank never starts.

    Python then prints `Timeout (0:10:00)!` and a traceback, which `hpclbfl.launch.postmortem` explains.
    """
    if launched_size(os.environ) == 1 or sys.__stderr__ is None:
        yield
        return
    # MPI's start may hold the interpreter lock, which would keep any Python thread from acting.
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class Note:
    """A rank's last report."""

    step: Annotated[int, Field(ge=0, lt=2**53)]
    waits: bool
    time: float
    """Seconds since the epoch."""


class Watchdog:
    """Watches how long this rank waits; a context manager.

    Args:
        folder: of the attempt; shared by all ranks.
        rank, size: of the communicator.
        timeout_s: how long a rank may wait.
        give_up: called from the watching thread with the step and a line about who is missing; does not return.
    """

    def __init__(
        self, folder: Path, rank: int, size: int, timeout_s: float, give_up: Callable[[int, str], None]
    ) -> None:
        self._folder, self._rank, self._size, self._timeout_s = folder, rank, size, timeout_s
        self._give_up = give_up
        self._pause = min(NOTE_EVERY_S, timeout_s / 5)
        self._waiting_since: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.step = 0
        """Kept up to date by the training loop."""

    def __enter__(self) -> Watchdog:
        if self._size > 1:
            self._note()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which this rank waits for others."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        while not self._over.wait(self._pause):
            self._note()
            since = self._waiting_since
            waited = time.monotonic() - since if since is not None else 0.0
            # The lowest waiting rank speaks first; others only if it does not.
            if waited > self._timeout_s + self._pause * (1 + self._rank):
                self._give_up(self.step, f"waited {waited:.0f} s for {self._missing()}")

    def _note(self) -> None:
        note = Note(self.step, self._waiting_since is not None, time.time())
        # Failing to write a note must not end a healthy run.
        with suppress(OSError):
            path = note_path(self._folder, self._rank)
            temporary = path.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            with create(temporary) as file:
                file.write(json.dumps(asdict(note)).encode())
            temporary.replace(path)

    def _missing(self) -> str:
        notes = read_notes(self._folder)
        newest = max((self.step, *(note.step for note in notes.values())))
        stale = time.time() - 3 * self._pause - 1
        missing = [
            r for r, n in notes.items() if r != self._rank and (not n.waits or n.time < stale or n.step < newest)
        ]
        if not missing:
            return "ranks that all wait, too: their calls do not match, or the network is gone"
        told = ((rank, notes[rank].step, time.time() - notes[rank].time) for rank in missing[:4])
        return " and ".join(f"rank {rank} (at step {step}, last heard of {age:.0f} s ago)" for rank, step, age in told)


def note_path(folder: Path, rank: int) -> Path:
    """Path of a rank's note."""
    return folder / f"rank{rank:05d}.note"


def read_note(folder: Path, rank: int) -> Note | None:
    """A rank's note in an attempt's folder; None if it is missing or unreadable."""
    try:
        return read_json(note_path(folder, rank), Note, NOTE_BYTES)
    except DataError:
        return None


def read_notes(folder: Path) -> dict[int, Note]:
    """All notes in an attempt's folder, by rank."""
    notes = {rank: read_note(folder, rank) for rank in numbers_in(folder, 5, "rank", ".note")}
    return {rank: note for rank, note in notes.items() if note is not None}


def end_process(code: int) -> None:
    """End this process from any thread; the launcher then ends the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Ends a process soon after its parent: a rank whose launcher was killed."""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE_S = 30.0
"""Seconds between the request to stop, upon which a run saves its state, and the kill."""
LOOK_EVERY_S = 0.5

_watch: threading.Thread | None = None


def end_with_parent() -> None:
    """Watch the parent from a thread; once it has ended, send this process TERM, and KILL if it does not end.

    The kernel's PR_SET_PDEATHSIG concerns the thread that started this process, and mpirun ends such threads while its
    ranks run.
    """
    global _watch
    if _watch is None:
        _watch = threading.Thread(target=_look, args=(os.getppid(),), name="parent", daemon=True)
        _watch.start()


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)

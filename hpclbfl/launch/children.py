"""How this package starts processes: none outlives it, and none looks for modules in the working folder."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_ENTRY = Path(__file__).resolve().parent / "entry"
RUN_MODULE = _ENTRY / "run_module.py"
_LOOK_EVERY_S = 0.05


def module_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of this package, or one that it needs, in a fresh interpreter.

    It is `python -m MODULE WORDS` without the working folder on the path, and the process ends with its parent.
    """
    return [sys.executable, str(RUN_MODULE), "-m", module, *words]


def tethered(command: Sequence[str], signum: int = signal.SIGTERM) -> list[str]:
    """Return the command, so that what it starts gets a signal when this process ends, even by KILL.

    It is to be started by the thread that then waits for it: the kernel takes that thread's end for the process's.
    """
    # Alone (-I -S) Python starts in some 10 ms.
    return [sys.executable, "-I", "-S", str(_ENTRY / "tether.py"), str(os.getpid()), str(int(signum)), *command]


def end_session(session: int, grace_s: float) -> None:
    """Wait for the processes that are left of a session, and kill those that are there after so long, in seconds.

    Args:
        session: number of the process that it was started with (`start_new_session`); that one may be gone.
    """
    end = time.monotonic() + grace_s
    while left := _members(session):
        if time.monotonic() >= end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)


def _members(session: int) -> list[int]:
    """The live processes of a session; none where the system has no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may hold anything.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in ("Z", "X"):
                found.append(int(path.parent.name))
    return found

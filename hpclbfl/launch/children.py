"""How this package starts processes: none outlives it, and none imports modules from the working folder."""

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
    """Return the command `python -m MODULE WORDS` without the working folder on the path; it ends with its parent."""
    return [sys.executable, str(RUN_MODULE), "-m", module, *words]


def tethered(command: Sequence[str], signum: int = signal.SIGTERM) -> list[str]:
    """Return a command whose process receives a signal when this process ends, even by KILL.

    The thread that starts it must also wait for it: to the kernel, the end of the thread is the end of the parent.
    """
    # With -I -S Python starts in about 10 ms.
    return [sys.executable, "-I", "-S", str(_ENTRY / "tether.py"), str(os.getpid()), str(int(signum)), *command]


def end_session(session: int, grace_s: float) -> None:
    """Wait for the remaining processes of a session, and kill those that are left after `grace_s` seconds.

    Args:
        session: id of its first process (`start_new_session`), which may have ended.
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

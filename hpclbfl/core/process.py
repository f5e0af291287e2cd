"""The identity of a process: its number and start time, which distinguishes it from a later process of that number."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field


class Process(NamedTuple):
    """A process, also after its end."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    """Never 0 or below: a signal would go to many processes."""
    start: str
    """When it was started, as the kernel of its machine says; empty if it does not."""

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, one of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_running(self) -> bool:
        """Whether it is a live process of this machine; a zombie is not."""
        start = _start(self.pid) if self.is_here else None
        return start is not None and (not self.start or not start or start == self.start)


def this_process() -> Process:
    """Return this process."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """Return the process of this machine that has this number now."""
    return Process(socket.gethostname(), pid, _start(pid) or "")


def _start(pid: int) -> str | None:
    """When a process of this machine was started; None: there is none; empty: the machine does not tell."""
    try:
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _ask(pid)
    return None if fields[0] in ("Z", "X") else f"{boot}/{fields[19]}"


def _ask(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""

"""Processes identified by pid and start time, so that a reused pid is not mistaken for the same process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field


class Process(NamedTuple):
    """A process, which may have ended."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    """Never 0 or negative: a signal would reach many processes."""
    start: str
    """Start time as the kernel reports it, with the boot id; empty if unknown."""

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_running(self) -> bool:
        """Whether it is a live process of this machine; a zombie is not."""
        start = _start(self.pid) if self.is_here else None
        return start is not None and (not self.start or not start or start == self.start)


def this_process() -> Process:
    """The calling process."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """The process of this machine that has this pid now."""
    return Process(socket.gethostname(), pid, _start(pid) or "")


def _start(pid: int) -> str | None:
    """Start time of a process of this machine; None if it does not exist, empty if the time is unknown."""
    try:
        # The name, in parentheses, may contain anything.
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

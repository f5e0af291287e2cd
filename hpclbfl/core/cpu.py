"""The processors of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def cpu_model() -> str | None:
    """Name of the processor; None if it is unknown."""
    names = [value for key, value in _cpuinfo() if key in ("model name", "Model")]
    return names[0] if names else platform.processor() or None


def physical_cores() -> int | None:
    """Physical cores of the machine; None if unknown."""
    cores, socket_id = set(), "0"
    for key, value in _cpuinfo():
        if key == "physical id":
            socket_id = value
        elif key == "core id":
            cores.add((socket_id, value))
    return len(cores) or None


def usable_threads() -> int | None:
    """Hardware threads that this process may use; None if unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

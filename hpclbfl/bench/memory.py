"""Memory of a launch."""

from __future__ import annotations

import os
from pathlib import Path

MEMORY = "memory of all processes (PSS)"
"""What it is called in tables."""


def launch_pss() -> int:
    """Proportional set size of mpirun and all that it has started, bytes; called by one of its ranks."""
    return tree_pss(os.getppid())


def tree_pss(root: int) -> int:
    """Proportional set size of a process and all below it, bytes: pages that several share are counted once."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # The name before it may hold anything, also brackets.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                # It has ended.
                continue
    found, todo = set(), [root]
    while todo:
        found.add(pid := todo.pop())
        todo += [child for child, parent in parents.items() if parent == pid and child not in found]
    return sum(_pss(pid) for pid in found)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next((line.split()[1] for line in lines if line.startswith("Pss:")), 0))

"""Free memory, and sizes in bytes as people write them."""

from __future__ import annotations

import re
from pathlib import Path

from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import shown

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_UNLIMITED = 2**60
"""Control groups without a limit report this or a little less."""


def parse_size(text: str) -> int:
    """Number of bytes in `2GB`, `512 MiB` or `1.5e9`.

    Raises:
        ConfigError: it is not a size.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", text, re.IGNORECASE)
    try:
        size = int(float(found.group(1)) * _UNITS[found.group(2).upper()]) if found else 0
    except (ValueError, KeyError, OverflowError):
        size = 0
    if not 1 <= size < _UNLIMITED:
        raise ConfigError(f"memory limit {shown(text)}: write a size such as 2GB or 512MiB")
    return size


def shown_size(size: float) -> str:
    """A number of bytes with three digits and a unit: `1.25 GB`, `20 MB`, `512 bytes`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # What rounds to 1000 of one unit is written as 1 of the next.
        if abs(size) >= 0.9995 * unit:
            number = size / unit
            return f"{number:.0f} {name}" if abs(number) >= 99.95 else f"{number:.3g} {name}"
    return f"{size:.0f} bytes"


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory, bytes: of the machine, or of the control group if it allows less."""
    found = [_available(proc)]
    for group in _groups(proc, cgroups):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is None:
            limit, used = _number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            # Cached files count as used, but can be evicted.
            found.append(max(0, limit - (used or 0) + _cached(group)))
    return min(found)


def _available(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError as error:
        raise ConfigError("memory limit: the free memory of this system is unknown; give --memory-limit") from error
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    """The control groups that limit this process's memory, from its own up to the root."""
    groups = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        own = root / path.strip("/")
        groups += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return groups


def _cached(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(fields.get("inactive_file", 0))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None

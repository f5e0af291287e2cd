"""Run folders on disk: where the runs are, and which of their files changed since somebody looked."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpclbfl.errors import DataError

Kind = Literal["config", "status", "done", "provenance", "log"]

_RUN_FILES: dict[str, Kind] = {"config.yaml": "config", "status.json": "status", "DONE.json": "done"}


@dataclass(frozen=True)
class Found:
    """A file of a run as the folder shows it, unread."""

    path: str
    """Seen from the folder that was scanned, with forward slashes."""
    kind: Kind
    attempt: str
    """Name of the attempt's folder; empty for files of the run itself."""
    size: int
    """Bytes."""
    mtime_ns: int


def find_runs(directory: str | Path) -> list[Path]:
    """All run folders (they hold config.yaml) at or below a folder, sorted by path; hidden folders are left out.

    Links to folders are followed, but for those that lead back up. A run that several paths lead to is found once: by
    the one without links, or else the first.

    Raises:
        DataError: the folder is not there.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a run folder, or one that holds some")
    found = []
    seen = {_identity(folder) for folder in root.resolve().parents}
    starts = [root]
    while starts:
        for name, below, files in os.walk(starts.pop(0)):
            folder = Path(name)
            below[:] = sorted(name for name in below if not name.startswith("."))
            identity = _identity(folder)
            if identity in seen or "config.yaml" in files:
                below.clear()
            if identity not in seen and "config.yaml" in files:
                found.append(folder)
            seen.add(identity)
            # Links come last, so that what has a path without one is found there.
            starts += [path for name in below if (path := folder / name).is_symlink()]
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode; None when the folder has just vanished."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def run_key(run: Path, root: Path) -> str:
    """What names a run in every frame: its path seen from `root`; its folder's name where it is the root."""
    relative = run.relative_to(root).as_posix()
    return run.resolve().name if relative == "." else relative


def run_files(run: Path, root: Path) -> list[Found]:
    """The files of a run that the analysis reads: its own, then attempts in their order, ranks in theirs."""
    prefix = "" if run == root else f"{run.relative_to(root).as_posix()}/"
    files = [
        Found(prefix + name, _RUN_FILES[name], "", size, mtime_ns)
        for name, size, mtime_ns in _files(str(run))
        if name in _RUN_FILES
    ]
    folders = next(os.walk(f"{run}/attempts"), ("", [], []))[1]
    for attempt in sorted((name for name in folders if name[:1].isdigit()), key=lambda n: (len(n), n)):
        for name, size, mtime_ns in sorted(_files(f"{run}/attempts/{attempt}")):
            path = f"{prefix}attempts/{attempt}/{name}"
            if name == "provenance.json":
                files.append(Found(path, "provenance", attempt, size, mtime_ns))
            elif name.startswith("rank") and name.endswith(".h5"):
                files.append(Found(path, "log", attempt, size, mtime_ns))
    return files


def _files(folder: str) -> list[tuple[str, int, int]]:
    """Name, size and time of a folder's files; what vanishes meanwhile is not there."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        stat = entry.stat()
                        found.append((entry.name, stat.st_size, stat.st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError):
        pass
    return found


def unstarted(root: Path) -> list[str]:
    """Keys of runs that a sweep's folder lists (sweep.json) and that have no folder yet."""
    try:
        listed = json.loads((root / "sweep.json").read_text(encoding="utf-8"))["runs"]
        names = [str(run["id"]) for run in listed if run.get("listed", True)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [f"runs/{name}" for name in names if not (root / "runs" / name / "config.yaml").exists()]

"""Run folders on disk: where runs are, and which files they have."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpclbfl.core.errors import DataError
from hpclbfl.core.jsonfile import read_json
from hpclbfl.core.text import printable

Kind = Literal["config", "status", "done", "provenance", "log", "folder"]
"""Kind of a file; a folder that cannot be listed stands for all files in it."""

_RUN_FILES: dict[str, Kind] = {"config.yaml": "config", "status.json": "status", "DONE.json": "done"}


@dataclass(frozen=True)
class Found:
    """A file of a run, as listed in its folder."""

    path: str
    """Relative to the scanned folder, with forward slashes."""
    kind: Kind
    attempt: str
    """Name of the attempt's folder; empty for files of the run itself."""
    size: int
    """Bytes."""
    mtime_ns: int
    is_regular: bool = True
    """False: a pipe, a device, a folder or a broken link, which must not be opened."""


@dataclass(frozen=True)
class _Listed:
    """A run in sweep.json."""

    id: str
    listed: bool = True


@dataclass(frozen=True)
class _Sweep:
    """sweep.json."""

    runs: list[_Listed]


def find_runs(directory: str | Path, unread: list[str] | None = None) -> list[Path]:
    """All run folders (those with a config.yaml) at or below a folder, sorted by path; hidden folders are skipped.

    Links to folders are followed unless they lead back up. A run with several paths is found once: by the path without
    links, or else by the first one.

    Args:
        unread: a line is appended for every folder that cannot be listed.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(directory)
    try:
        is_there = root.is_dir()
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    if not is_there:
        raise DataError(f"{root}: no such folder; give a run folder, or one that holds some")

    def note(error: OSError) -> None:
        # A broken link, or a folder that has just been removed, hides nothing.
        if unread is not None and not isinstance(error, FileNotFoundError | NotADirectoryError):
            unread.append(f"{error.filename}: cannot be listed: {(error.strerror or str(error)).lower()}; left out")

    found = []
    seen = {_identity(folder) for folder in root.resolve().parents}
    starts = [root]
    while starts:
        for name, below, files in os.walk(starts.pop(0), onerror=note):
            folder = Path(name)
            below[:] = sorted(name for name in below if not name.startswith("."))
            identity = _identity(folder)
            if identity in seen or "config.yaml" in files:
                below.clear()
            if identity not in seen and "config.yaml" in files:
                found.append(folder)
            seen.add(identity)
            # Links last, so that a folder that also has a path without links is found by that one.
            starts += [path for name in below if (path := folder / name).is_symlink()]
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode; None if the folder has just been removed."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def run_key(run: Path, root: Path) -> str:
    """The name of a run in every frame: its path relative to `root`, or its folder's name if it is the root.

    One line of printable characters; two runs may share a key, see `run_keys`.
    """
    relative = run.relative_to(root).as_posix()
    return printable(run.resolve().name if relative == "." else relative)


def run_keys(runs: Iterable[Path], root: Path) -> dict[str, Path]:
    """Runs by key; a number distinguishes runs whose keys would be equal."""
    keys: dict[str, Path] = {}
    for run in runs:
        key = run_key(run, root)
        number = 1
        while key in keys:
            number += 1
            key = f"{run_key(run, root)} #{number}"
        keys[key] = run
    return keys


def run_files(run: Path, root: Path) -> list[Found]:
    """The files of a run that the analysis reads: its own, then those of its attempts, each in order of rank."""
    prefix = "" if run == root else f"{run.relative_to(root).as_posix()}/"
    own, files = _entries(run, prefix)
    files += [_found(entry, prefix, _RUN_FILES[entry.name]) for entry in own if entry.name in _RUN_FILES]
    attempts, unlisted = _entries(run / "attempts", f"{prefix}attempts/")
    files += unlisted
    folders = [entry.name for entry in attempts if entry.name[:1].isdigit() and _is_folder(entry)]
    for attempt in sorted(folders, key=lambda name: (len(name), name)):
        folder = f"{prefix}attempts/{attempt}/"
        entries, unlisted = _entries(run / "attempts" / attempt, folder)
        files += unlisted
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name == "provenance.json":
                files.append(_found(entry, folder, "provenance", attempt))
            elif entry.name.startswith("rank") and entry.name.endswith(".h5"):
                files.append(_found(entry, folder, "log", attempt))
    return files


def _entries(folder: Path, path: str) -> tuple[list[os.DirEntry[str]], list[Found]]:
    """Entries of a folder (none if it has just been removed), and the folder itself if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries), []
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError:
        return [], [Found(path.rstrip("/"), "folder", "", 0, 0, False)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _found(entry: os.DirEntry[str], prefix: str, kind: Kind, attempt: str = "") -> Found:
    try:
        is_regular, stat = entry.is_file(), entry.stat()
    except OSError:
        # It has just been removed, or is a broken link.
        return Found(prefix + entry.name, kind, attempt, 0, 0, False)
    return Found(prefix + entry.name, kind, attempt, stat.st_size, stat.st_mtime_ns, is_regular)


def unstarted(root: Path) -> tuple[list[str], str]:
    """Keys of the runs that the sweep.json of a folder lists and that have no folder yet.

    Returns:
        The keys, and why sweep.json cannot be read (empty if it can).
    """
    try:
        sweep = read_json(root / "sweep.json", _Sweep)
    except DataError as error:
        return [], str(error)
    names = [run.id for run in sweep.runs if run.listed] if sweep is not None else []
    return [printable(f"runs/{name}") for name in names if not _is_there(root / "runs" / name / "config.yaml")], ""


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False

"""Copies of a job's own parts in the folder of a run or a sweep, and their entries in a run's provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclbfl.config.job import JobConfig
from hpclbfl.config.own_parts import sources
from hpclbfl.config.own_sources import MAX_BYTES
from hpclbfl.core.errors import DataError
from hpclbfl.core.files import make_folder, read_bytes, write_bytes


def keep_parts(folder: Path, job: JobConfig) -> None:
    """Copy the files of a job's own parts into a folder, each under its hash; intact copies stay as they are.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    for part, source in sources(job.model_dump(mode="json")).values():
        path = folder / source.copy
        if not part.is_file or _holds(path, source.content):
            continue
        for parent in (path.parent.parent, path.parent):
            make_folder(parent)
        write_bytes(path, source.content)


def part_records(job: JobConfig) -> list[dict[str, Any]]:
    """One provenance entry for each of a job's own parts: key, name, hash, package version or path of the copy."""
    return [
        {
            "key": ".".join(path),
            "name": part.brief,
            "sha256": source.sha256,
            "version": source.version,
            "copy": str(source.copy) if part.is_file else None,
        }
        for path, (part, source) in sources(job.model_dump(mode="json")).items()
    ]


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_bytes(path, MAX_BYTES) == content
    except (FileNotFoundError, DataError):
        return False

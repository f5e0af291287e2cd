"""Reading logs: one rank's file, or a run folder with all its ranks and attempts as one set of tables.

Loads neither torch nor Horovod. Files of live and of killed writers read alike: rows up to the counter `committed`.
A file that is torn is named, never averaged in silence.
"""

from __future__ import annotations

import ctypes
import json
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5f, h5p, h5s, h5t

from hpclbfl.core.yamlfile import read_mapping
from hpclbfl.errors import ConfigError, DataError
from hpclbfl.runlog.coverage import Attempt, LogSpan, find_limits, find_problems
from hpclbfl.runlog.schema import DTYPES, SCHEMA_VERSION, TABLES

Table = np.ndarray[Any, np.dtype[Any]]
"""Rows of one table: a structured array with the schema's row type."""


_READ_ATTEMPTS = 26
"""Of a block that a live writer may be changing: about 0.1 s in all, from 1 ns and doubling."""


class TornFile(DataError):
    """A file of a run that cannot be trusted: unreadable, cut short, with holes or without rows, or missing."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class RankLog:
    """What one rank wrote in one attempt."""

    path: Path
    attributes: dict[str, Any]
    """Root attributes: schema_version, config, provenance, rank, attempt, resumed_from_step."""
    tables: dict[str, Table]
    """All tables of the schema, cut at the committed rows."""

    @property
    def span(self) -> LogSpan:
        """The steps that it covers."""
        start, steps = int(self.attributes.get("resumed_from_step", 0)), self.tables["steps"]["step"]
        return LogSpan(str(self.path), start, int(steps[-1]) + 1 if len(steps) else start)


@dataclass(frozen=True)
class RunLogs:
    """A run folder, read whole; ranks and attempts merged."""

    path: Path
    config: dict[str, Any]
    """config.yaml: the resolved job."""
    status: dict[str, Any]
    """status.json; empty when there is none."""
    done: dict[str, Any] | None
    """DONE.json; None while the run is not done."""
    provenance: dict[str, Any]
    """provenance.json of the last attempt that has one; empty when none has."""
    num_attempts: int
    tables: dict[str, Table]
    """All tables: `steps` by step, then client; the others by step."""
    torn: list[TornFile] = field(default_factory=list)
    """Files whose rows are not in the tables, or not all that there should be, with the reason."""


def read_file(path: str | Path) -> RankLog:
    """Read one rank's log, also while it is being written.

    Raises:
        TornFile: it is missing, unreadable, cut short or has holes.
        DataError: another version of the schema wrote it.
    """
    path = Path(path)
    try:
        # The low-level calls read a folder of 1,000 files about three times as fast as h5py.File.
        file = h5f.open(bytes(path), h5f.ACC_RDONLY | h5f.ACC_SWMR_READ, swmr_access())
    except (OSError, RuntimeError) as error:
        reason = "is not there" if not path.exists() else f"is torn, HDF5 cannot open it ({_first_line(error)})"
        raise TornFile(path, reason) from error
    try:
        attributes = _attributes(file)
        version = attributes.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(f"{path}: has log schema {version}; this version reads schema {SCHEMA_VERSION}")
        tables = _read_tables(path, file)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise TornFile(path, f"is torn, HDF5 cannot read it ({_first_line(error)})") from error
    finally:
        file.close()
    return RankLog(path, attributes, tables)


@cache
def swmr_access() -> Any:
    """Return the file-access properties to open a log with while it may still be written."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_LATEST, h5f.LIBVER_LATEST)
    access.set_file_locking(False, True)
    # In SWMR mode HDF5 reads a block whose checksum is wrong 100 times over, each pause twice the last: it never ends
    # on a torn file. h5py has no word for the limit; its own extension module leads to the C library it is linked to.
    set_attempts = getattr(ctypes.CDLL(h5p.__file__), "H5Pset_metadata_read_attempts", None)
    if set_attempts is not None:
        set_attempts.argtypes = [ctypes.c_int64, ctypes.c_uint]
        set_attempts(access.id, _READ_ATTEMPTS)
    return access


@cache
def _memory_type(name: str) -> Any:
    return h5t.py_create(DTYPES[name])


def _attributes(file: Any) -> dict[str, Any]:
    found = {}
    for index in range(h5a.get_num_attrs(file)):
        attribute = h5a.open(file, index=index)
        value = np.zeros(attribute.shape, attribute.dtype)
        attribute.read(value)
        item = value.item()
        found[attribute.name.decode()] = item.decode(errors="replace") if isinstance(item, bytes) else item
    return found


def read_committed(file: Any) -> dict[str, tuple[int, int]]:
    """Rows of each table of an open log that its writer has flushed, and their CRC-32."""
    committed = np.zeros((len(TABLES), 2), np.int64)
    h5d.open(file, b"committed").read(h5s.ALL, h5s.ALL, committed)
    return {name: (int(rows), int(checksum)) for name, (rows, checksum) in zip(TABLES, committed, strict=True)}


def _read_tables(path: Path, file: Any) -> dict[str, Table]:
    committed = read_committed(file)
    while True:
        tables = {name: _read_table(path, file, name, rows) for name, (rows, _) in committed.items()}
        wrong = [name for name, table in tables.items() if zlib.crc32(table.data) != committed[name][1]]
        if not wrong:
            return tables
        # A live writer may have been at the counter just then.
        before, committed = committed, read_committed(file)
        if committed == before:
            raise TornFile(path, f"is damaged: rows of table '{wrong[0]}' do not have their checksum")


def _read_table(path: Path, file: Any, name: str, rows: int) -> Table:
    dtype = DTYPES[name]
    if rows == 0:
        return np.zeros(0, dtype)
    dataset = h5d.open(file, name.encode())
    space = dataset.get_space()
    # Before memory is taken: a damaged counter may ask for any amount of it.
    if not 0 < rows <= space.shape[0]:
        raise TornFile(path, f"is torn: table '{name}' has {space.shape[0]} of {rows} committed rows")
    table: Table = np.zeros(rows, dtype)
    # HDF5 reads zeros, without a word, where a file was cut short.
    end = 0

    def note_end(chunk: Any) -> None:
        nonlocal end
        if chunk.chunk_offset[0] < rows:
            end = max(end, chunk.byte_offset + chunk.size)

    dataset.chunk_iter(note_end)
    if end > path.stat().st_size:
        raise TornFile(path, f"is torn: cut short within table '{name}'")
    space.select_hyperslab((0,), (rows,))
    dataset.read(h5s.create_simple((rows,)), space, table, _memory_type(name))
    suspects = table[table[dtype.names[0]] == 0] if dtype.names else table
    if any(not row.tobytes().strip(b"\0") for row in suspects):
        raise TornFile(path, f"is torn: table '{name}' has rows of zeros")
    return table


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_run(run_dir: str | Path) -> RunLogs:
    """Read a run folder: its JSON files and the tables of all ranks and attempts, merged.

    Which rows count, and which are missing, is `runlog.coverage`'s rule. Steps come from every rank; evaluations,
    layers and plans, the same on all ranks, from rank 0; events from every rank, equal ones once. Files that cannot be
    read, and logs that lack rows, stand in `torn`.

    Raises:
        DataError: the folder or its config.yaml is not there or cannot be read.
    """
    path = Path(run_dir)
    try:
        config = read_mapping(path / "config.yaml", "holds no mapping")
    except ConfigError as error:
        raise DataError(f"{path}: not a run folder: {error}") from error
    torn: list[TornFile] = []
    # Before the logs: a run that ends meanwhile would seem to lack its last rows.
    status, done = _read_json(path / "status.json", torn), _read_json(path / "DONE.json", torn)
    attempts: list[Attempt] = []
    logs: list[list[RankLog]] = []
    for folder in sorted((path / "attempts").glob("[0-9]*"), key=lambda p: (len(p.name), p.name)):
        provenance = _read_json(folder / "provenance.json", torn) or {}
        spans, readable = _read_logs(folder)
        attempts.append(Attempt(str(folder), spans, provenance))
        logs.append(readable)
    problems = find_problems(str(path / "attempts"), attempts, done)
    return RunLogs(
        path=path,
        config=config,
        status=status or {},
        done=done,
        provenance=next((dict(a.provenance) for a in reversed(attempts) if a.provenance), {}),
        num_attempts=len(attempts),
        tables=_merge(logs, find_limits(attempts)),
        torn=torn + [TornFile(Path(problem.path), problem.reason) for problem in problems],
    )


def _read_logs(folder: Path) -> tuple[list[LogSpan], list[RankLog]]:
    """What all logs of an attempt cover, and those that can be read."""
    spans, logs = [], []
    for file in sorted(folder.glob("rank*.h5")):
        try:
            logs.append(read_file(file))
            spans.append(logs[-1].span)
        except TornFile as error:
            spans.append(LogSpan(str(file), problem=error.reason))
    return spans, logs


def _merge(attempts: list[list[RankLog]], limits: list[int]) -> dict[str, Table]:
    """One set of tables out of the logs of successive attempts, of each the rows of steps below its limit."""
    parts: dict[str, list[Table]] = {name: [np.zeros(0, DTYPES[name])] for name in TABLES}
    for logs, limit in zip(attempts, limits, strict=True):
        for log in logs:
            for name, table in log.tables.items():
                if name in ("steps", "events") or log.attributes.get("rank") == 0:
                    parts[name].append(table[table["step"] < limit])
    merged = {name: np.concatenate(tables) for name, tables in parts.items()}
    merged["events"] = np.unique(merged["events"])
    for name, table in merged.items():
        keys = (table["client"], table["step"]) if name in ("steps", "plans") else (table["step"],)
        merged[name] = table[np.lexsort(keys)]
    return merged


def _read_json(path: Path, torn: list[TornFile]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        torn.append(TornFile(path, f"cannot be read ({_first_line(error)})"))
        return None
    if isinstance(found, dict):
        return found
    torn.append(TornFile(path, "holds no JSON object"))
    return None

"""Reading logs: one rank's file, or a run folder with all its ranks and attempts as one set of tables.

Loads neither torch nor Horovod. Of a file whose writer is running or was killed, the rows up to the counter `committed`
are read. A damaged file is reported, never averaged silently.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.config.migrate import migrated
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.h5file import H5File
from hpclbfl.core.h5object import DamagedFile
from hpclbfl.core.jsonfile import read_json
from hpclbfl.core.yamlfile import read_mapping
from hpclbfl.runs.log.coverage import Attempt, LogSpan, find_limits, find_problems, row_limit
from hpclbfl.runs.log.schema import DTYPES, TABLES, TABLES_OF, LogAttributes, LogTexts, find_wrong_number

Table = np.ndarray[Any, np.dtype[Any]]
"""Rows of one table: a structured array with the schema's row type."""


class TornFile(DamagedFile):
    """A damaged file of a run: missing, unreadable, truncated, with holes, or without rows that it should have."""


@dataclass(frozen=True)
class RankLog:
    """The log of one rank in one attempt."""

    path: Path
    attributes: LogAttributes
    tables: dict[str, Table]
    """All tables of the schema, up to the committed rows."""

    @property
    def span(self) -> LogSpan:
        """The steps that the log covers."""
        start, steps = self.attributes.resumed_from_step, self.tables["steps"]["step"]
        return LogSpan(str(self.path), start, int(steps[-1]) + 1 if len(steps) else start)


@dataclass(frozen=True)
class RunLogs:
    """All logs of a run folder, ranks and attempts merged."""

    path: Path
    config: dict[str, Any]
    """config.yaml: the resolved job."""
    status: dict[str, Any]
    """status.json; empty if there is none."""
    done: dict[str, Any] | None
    """DONE.json; None while the run is not finished."""
    provenance: dict[str, Any]
    """provenance.json of the last attempt that has one; empty if none has."""
    num_attempts: int
    tables: dict[str, Table]
    """All tables: `steps` and `plans` sorted by step, then client; the others by step."""
    torn: list[TornFile] = field(default_factory=list)
    """Files of which rows are missing in the tables, with the reason."""


@contextmanager
def _open_log(path: Path) -> Iterator[H5File]:
    try:
        with H5File(path, is_live=True) as file:
            yield file
    except DamagedFile as error:
        raise TornFile(path, error.reason) from error


def read_file(path: str | Path) -> RankLog:
    """Read one rank's log, also while it is being written.

    Raises:
        TornFile: it is missing, unreadable, cut short, has holes, or is not a log.
        DataError: it has another version of the schema.
    """
    with _open_log(Path(path)) as file:
        return RankLog(file.path, _read_attributes(file), _read_tables(file))


def read_last_rows(path: Path, counts: Mapping[str, int]) -> dict[str, Table]:
    """Read the newest rows of some tables of a log, also while it is being written.

    Checksums, which cover all rows, are not verified.

    Args:
        path: the log.
        counts: largest number of rows to read, by table.

    Raises:
        TornFile: it is missing or cannot be read.
    """
    with _open_log(path) as file:
        committed = {name: rows for name, (rows, _) in _read_committed(file, _tables_of(file)).items()}
        return {
            name: _read_rows(file, name, max(0, committed[name] - count), committed[name])
            for name, count in counts.items()
        }


def read_texts(path: Path) -> LogTexts:
    """Read a log's texts, the job and the provenance of its attempt; `read_file` leaves them out, for speed.

    Raises:
        TornFile: the log is missing or cannot be read, or the texts do not match their checksum.
    """
    with _open_log(path) as file:
        found = LogTexts(file.text("config"), file.text("provenance"))
        # Logs of older versions have no such checksum.
        if file.has("texts_crc32") and file.integer("texts_crc32", high=2**32 - 1) != found.checksum():
            raise file.fault("is damaged: its texts do not match their checksum")
        return found


def _read_attributes(file: H5File) -> LogAttributes:
    _tables_of(file)
    return LogAttributes(*(file.integer(name) for name in ("rank", "attempt", "resumed_from_step")))


def _tables_of(file: H5File) -> tuple[str, ...]:
    """Names of a log's tables, in the order of its counters. Raises DataError for an unknown version of the schema."""
    version = file.integer("schema_version")
    if version not in TABLES_OF:
        known = " and ".join(map(str, TABLES_OF))
        raise DataError(f"{file.path}: has log schema {version}; this version reads schema {known}")
    return TABLES_OF[version]


def _read_committed(file: H5File, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Rows of each table of a log that its writer has flushed, and their CRC-32."""
    counters = file.dataset("committed", np.dtype("<i8"), (len(names), 2)).read()
    return {name: (int(rows), int(checksum)) for name, (rows, checksum) in zip(names, counters, strict=True)}


def _read_tables(file: H5File) -> dict[str, Table]:
    names = _tables_of(file)
    committed = _read_committed(file, names)
    while True:
        tables = {name: _read_rows(file, name, 0, rows) for name, (rows, _) in committed.items()}
        wrong = [name for name, table in tables.items() if zlib.crc32(table.data) != committed[name][1]]
        if not wrong:
            break
        # A live writer may have been at the counter just then.
        before, committed = committed, _read_committed(file, names)
        if committed == before:
            raise file.fault(f"is damaged: rows of table '{wrong[0]}' do not match their checksum")
    for name, table in tables.items():
        problem = find_wrong_number(name, table)
        if problem:
            raise file.fault(f"is damaged: {problem}")
    # Those that an older version did not have are empty.
    return {name: np.zeros(0, DTYPES[name]) for name in TABLES} | tables


def _read_rows(file: H5File, name: str, begin: int, end: int) -> Table:
    dtype = DTYPES[name]
    if begin == end:
        return np.zeros(0, dtype)
    dataset = file.dataset(name, dtype)
    if not 0 <= begin < end <= dataset.shape[0]:
        raise file.fault(f"is torn: table '{name}' has {dataset.shape[0]} of {end} committed rows")
    table = dataset.rows(begin, end)
    suspects = table[table[dtype.names[0]] == 0] if dtype.names else table
    if any(not row.tobytes().strip(b"\0") for row in suspects):
        raise file.fault(f"is torn: table '{name}' has rows of zeros")
    return table


def read_run(run_dir: str | Path) -> RunLogs:
    """Read a run folder: its JSON files and the tables of all ranks and attempts, merged.

    `hpclbfl.runs.log.coverage` defines which rows count. Steps and metrics come from every rank; evaluations, layers
    and plans, which are equal on all ranks, from rank 0; events from every rank, without duplicates. `torn` lists files
    that cannot be read and logs that lack rows.

    Raises:
        DataError: the folder or its config.yaml is missing or cannot be read.
    """
    path = Path(run_dir)
    try:
        config = migrated(read_mapping(path / "config.yaml", "holds no mapping"))
    except ConfigError as error:
        raise DataError(f"{path}: not a run folder: {error}") from error
    torn: list[TornFile] = []
    # Read before the logs: otherwise a run that ends meanwhile would seem to lack its last rows.
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


def read_attempt_log(path: Path) -> RankLog:
    """Read the log `attempts/<attempt>/rank<rank>.h5`; see `read_file`.

    Raises:
        TornFile: also if it belongs to another rank or attempt, because its rows would count twice.
    """
    log = read_file(path)
    rank, attempt = log.attributes.rank, log.attributes.attempt
    if (path.parent.name, path.name) != (f"{attempt:03d}", f"rank{rank:05d}.h5"):
        raise TornFile(path, f"is the log of rank {rank} in attempt {attempt}, which does not match its name")
    return log


def _read_logs(folder: Path) -> tuple[list[LogSpan], list[RankLog]]:
    """The spans of all logs of an attempt, and the logs that can be read."""
    spans, logs = [], []
    for file in sorted(folder.glob("rank*.h5")):
        try:
            logs.append(read_attempt_log(file))
            spans.append(logs[-1].span)
        except TornFile as error:
            spans.append(LogSpan(str(file), problem=error.reason))
    return spans, logs


def _merge(attempts: list[list[RankLog]], limits: list[int]) -> dict[str, Table]:
    """Merge the logs of successive attempts; of each attempt, the rows of steps below its limit."""
    parts: dict[str, list[Table]] = {name: [np.zeros(0, DTYPES[name])] for name in TABLES}
    for logs, limit in zip(attempts, limits, strict=True):
        for log in logs:
            for name, table in log.tables.items():
                if name in ("steps", "events", "metrics") or log.attributes.rank == 0:
                    parts[name].append(table[table["step"] < row_limit(name, limit)])
    merged = {name: np.concatenate(tables) for name, tables in parts.items()}
    merged["events"] = np.unique(merged["events"])
    for name, table in merged.items():
        keys = (table["client"], table["step"]) if name in ("steps", "plans", "metrics") else (table["step"],)
        merged[name] = table[np.lexsort(keys)]
    return merged


def _read_json(path: Path, torn: list[TornFile]) -> dict[str, Any] | None:
    try:
        return read_json(path, dict[str, Any])
    except DataError as error:
        torn.append(TornFile(path, str(error).removeprefix(f"{path}: ")))
        return None

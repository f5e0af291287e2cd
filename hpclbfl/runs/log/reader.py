"""Reading logs: one rank's file, or a run folder with all its ranks and attempts as one set of tables.

Loads neither torch nor Horovod. Files of live and of killed writers read alike: rows up to the counter `committed`.
A damaged file is named, never averaged silently.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
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
    """A damaged file of a run: unreadable, truncated, with holes or without rows, or missing."""


@dataclass(frozen=True)
class RankLog:
    """What one rank wrote in one attempt."""

    path: Path
    attributes: LogAttributes
    tables: dict[str, Table]
    """All tables of the schema, cut at the committed rows."""

    @property
    def span(self) -> LogSpan:
        """The steps that it covers."""
        start, steps = self.attributes.resumed_from_step, self.tables["steps"]["step"]
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
        TornFile: it is missing, unreadable, cut short, has holes, or is no log of ours.
        DataError: another version of the schema wrote it.
    """
    path = Path(path)
    try:
        with H5File(path, is_live=True) as file:
            attributes = _read_attributes(file)
            return RankLog(path, attributes, _read_tables(file))
    except DamagedFile as error:
        raise TornFile(path, error.reason) from error


def read_last_rows(path: Path, counts: Mapping[str, int]) -> dict[str, Table]:
    """Read the newest rows of some tables of a log, up to a number of each, also while it is being written.

    Raises:
        TornFile: it is missing or cannot be read. Checksums, which cover all rows, are not looked at.
    """
    try:
        with H5File(path, is_live=True) as file:
            committed = _read_committed(file, _tables_of(file))
            found = {}
            for name, count in counts.items():
                rows = committed[name][0]
                found[name] = _read_rows(file, name, max(0, rows - count), rows)
            return found
    except DamagedFile as error:
        raise TornFile(path, error.reason) from error


def read_texts(path: Path) -> LogTexts:
    """Read a log's texts, the job and the provenance of its attempt; `read_file` leaves them out, for speed.

    Raises:
        TornFile: the log is missing or cannot be read, or the texts do not have their checksum.
    """
    try:
        with H5File(path, is_live=True) as file:
            found = LogTexts(file.text("config"), file.text("provenance"))
            # Logs of older versions have none.
            if file.has("texts_crc32") and file.integer("texts_crc32", high=2**32 - 1) != found.checksum():
                raise file.fault("is damaged: its texts do not have their checksum")
            return found
    except DamagedFile as error:
        raise TornFile(path, error.reason) from error


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
            raise file.fault(f"is damaged: rows of table '{wrong[0]}' do not have their checksum")
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

    Which rows count, and which are missing, is `runlog.coverage`'s rule. Steps come from every rank; evaluations,
    layers and plans, the same on all ranks, from rank 0; metrics from every rank, which writes those of its clients;
    events from every rank, equal ones once. Files that cannot be read, and logs that lack rows, stand in `torn`.

    Raises:
        DataError: the folder or its config.yaml is not there or cannot be read.
    """
    path = Path(run_dir)
    try:
        config = migrated(read_mapping(path / "config.yaml", "holds no mapping"))
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


def read_attempt_log(path: Path) -> RankLog:
    """Read a log in its place, `attempts/<attempt>/rank<rank>.h5`; see `read_file`.

    Raises:
        TornFile: also where it is another rank's or attempt's, whose rows would count twice.
    """
    log = read_file(path)
    rank, attempt = log.attributes.rank, log.attributes.attempt
    if (path.parent.name, path.name) != (f"{attempt:03d}", f"rank{rank:05d}.h5"):
        raise TornFile(path, f"is the log of rank {rank} in attempt {attempt}, not that of its place")
    return log


def _read_logs(folder: Path) -> tuple[list[LogSpan], list[RankLog]]:
    """What all logs of an attempt cover, and those that can be read."""
    spans, logs = [], []
    for file in sorted(folder.glob("rank*.h5")):
        try:
            logs.append(read_attempt_log(file))
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

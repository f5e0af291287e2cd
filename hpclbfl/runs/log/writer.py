"""Writing a rank's log so that a kill at any moment loses no row whose flush returned.

All datasets and attributes are created before single-writer/multiple-reader mode begins. Rows are collected in blocks
of 100, which are flushed when they are full or their oldest row is 2 s old. Only then is the counter `committed`
increased, together with the checksum of all rows so far; readers rely on this counter only. A log is never opened for
writing again: the next attempt writes a file of its own.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from h5py import h5s, h5t

from hpclbfl.core.errors import RunFailed
from hpclbfl.core.h5library import fault_of, fixed_text, plain_text
from hpclbfl.core.h5write import abandon
from hpclbfl.runs.log.schema import (
    COLUMNS,
    DTYPES,
    SCHEMA_VERSION,
    TABLES,
    LogAttributes,
    LogTexts,
    defaults,
    fit_text,
    text_columns,
)
from hpclbfl.runs.log.tables import describe

BLOCK_ROWS = 100
"""Rows of a block, which are written together."""
FLUSH_AFTER_S = 2.0
"""Age at which rows are written although their block is not full, seconds."""
_CHUNK_ROWS = 200


class _Table:
    """One table's dataset and its block of unwritten rows."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self.block = np.zeros(BLOCK_ROWS, DTYPES[name])
        self.used = 0
        self.oldest = 0.0
        self.rows = 0
        self.checksum = 0
        self.widths = text_columns(name)
        self.names = DTYPES[name].names or ()
        self.defaults = defaults(name)
        self._dataset = dataset.id
        self._type = h5t.py_create(DTYPES[name])

    def write(self, rows: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Append rows to the dataset and flush it; the caller then writes the counter."""
        # h5py's low-level calls, because its slicing takes longer than the write.
        total = self.rows + len(rows)
        self._dataset.set_extent((total,))
        space = self._dataset.get_space()
        space.select_hyperslab((self.rows,), (len(rows),))
        self._dataset.write(h5s.create_simple((len(rows),)), space, rows, self._type)
        self._dataset.flush()
        self.rows, self.checksum = total, zlib.crc32(rows.data, self.checksum)


class RunLog:
    """One rank's log of one attempt. Not thread-safe.

    Args:
        path: the file, which does not exist yet; its folder does.
        attributes: of `LogAttributes` and `LogTexts`; those left out are 0 or empty.

    Raises:
        RunFailed: the file cannot be created or written; one line that names it. It accepts no more rows then.
    """

    def __init__(self, path: str | Path, attributes: dict[str, str | int | float]) -> None:
        self.path = Path(path)
        self._error: str | None = None
        if self.path.exists():
            raise RunFailed(f"{self.path}: exists already; a log is written once, start a new attempt")
        # It gets its name only when readers can open it.
        unready = self.path.with_name(self.path.name + ".new")
        try:
            self._file: Any = h5py.File(unready, "w", libver="latest", locking=False)
            self._create(attributes)
            self._file.flush()
            self._file.swmr_mode = True
            unready.rename(self.path)
            self._file_id = _file_id(self.path)
        except (OSError, RuntimeError) as error:
            failure = self._failed(error)
            with suppress(OSError):
                unready.unlink(missing_ok=True)
            raise failure from error

    def _create(self, attributes: dict[str, str | int | float]) -> None:
        texts = LogTexts(*(plain_text(str(attributes.get(name, ""))) for name in ("config", "provenance")))
        numbers = LogAttributes(*(int(attributes.get(name, 0)) for name in ("rank", "attempt", "resumed_from_step")))
        values = {"schema_version": SCHEMA_VERSION, **vars(numbers), **vars(texts), "texts_crc32": texts.checksum()}
        for key, value in values.items():
            self._file.attrs[key] = fixed_text(value) if isinstance(value, str) else value
        self._tables: dict[str, _Table] = {}
        for name in TABLES:
            dataset = self._file.create_dataset(
                name, shape=(0,), maxshape=(None,), dtype=DTYPES[name], chunks=(_CHUNK_ROWS,)
            )
            describe(dataset, COLUMNS[name])
            self._tables[name] = _Table(name, dataset)
        self._committed = np.zeros((len(TABLES), 2), np.int64)
        self._counter: Any = self._file.create_dataset("committed", data=self._committed).id
        self._file["committed"].attrs["order"] = ",".join(TABLES)
        self._file["committed"].attrs["columns"] = "rows,crc32"

    def append(self, table: str, **columns: Any) -> None:
        """Add one row. Floats that are left out are NaN, texts empty; integers must be given.

        Raises:
            ValueError: an unknown table or column, or a missing integer.
            RunFailed: a block was due and could not be written.
        """
        target = self._table(table)
        unknown = columns.keys() - set(target.names)
        missing = set(target.names) - columns.keys() - target.defaults.keys()
        if unknown or missing:
            raise ValueError(f"log table '{table}': unknown {sorted(unknown)}, missing {sorted(missing)}")
        row = {**target.defaults, **columns}
        self.append_row(table, tuple(row[name] for name in target.names))

    def append_row(self, table: str, row: tuple[Any, ...]) -> None:
        """Add one row, all columns in the schema's order; takes a few microseconds.

        Raises:
            RunFailed: a block was due and could not be written.
        """
        if self._error:
            raise RunFailed(self._error)
        target = self._tables[table]
        if target.widths:
            row = tuple(fit_text(v, target.widths[i]) if i in target.widths else v for i, v in enumerate(row))
        used = target.used
        target.block[used] = row
        now = monotonic()
        if used == 0:
            target.oldest = now
        target.used = used + 1
        if used + 1 == BLOCK_ROWS or now - target.oldest >= FLUSH_AFTER_S:
            self._write([target])

    def extend(self, table: str, rows: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Add and write many rows at once, an array of the table's row type.

        Raises:
            ValueError: an unknown table, or rows of another type.
            RunFailed: the rows could not be written.
        """
        target = self._table(table)
        if rows.dtype != DTYPES[table] or rows.ndim != 1:
            raise ValueError(f"log table '{table}': rows have type {rows.dtype}, not {DTYPES[table]}")
        if len(rows):
            self._write([target], np.ascontiguousarray(rows))

    def tick(self) -> None:
        """Write rows older than 2 s; for a loop that may not append for a while."""
        limit = monotonic() - FLUSH_AFTER_S
        due = [t for t in self._tables.values() if t.used and t.oldest <= limit]
        if due:
            self._write(due)

    def flush(self, fsync: bool = False) -> None:
        """Write all rows, so that they outlive this process, and with `fsync` a crash of the node.

        Raises:
            RunFailed: the disk is full or the file cannot be written.
        """
        self._write([t for t in self._tables.values() if t.used])
        if fsync:
            try:
                self._file.flush()
                os.fsync(self._file.id.get_vfd_handle())
            except (OSError, RuntimeError) as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Write all rows and close the file; a second call does nothing."""
        if not self._file or self._error:
            return
        self.flush()
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _table(self, name: str) -> _Table:
        try:
            return self._tables[name]
        except KeyError:
            raise ValueError(f"unknown log table '{name}'; the tables are {', '.join(TABLES)}") from None

    def _write(self, tables: list[_Table], more: np.ndarray[Any, np.dtype[Any]] | None = None) -> None:
        """Write the blocks of tables (and `more` rows of the last one), flush them, then update the counter."""
        if self._error or not self._file:
            raise RunFailed(self._error or f"{self.path}: the log is closed")
        try:
            for table in tables:
                if table.used:
                    table.write(table.block[: table.used])
                    table.used = 0
            if more is not None:
                tables[-1].write(more)
            if tables:
                self._committed[:] = [(t.rows, t.checksum) for t in self._tables.values()]
                self._counter.write(h5s.ALL, h5s.ALL, self._committed)
                self._counter.flush()
            # Rows in a file that was removed or replaced are lost even though they were written.
            file_id = _file_id(self.path)
        except FileNotFoundError as error:
            raise self._failed(RuntimeError("it was removed while it was written")) from error
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error
        if file_id != self._file_id:
            raise self._failed(RuntimeError("it was replaced while it was written"))

    def _failed(self, error: Exception) -> RunFailed:
        self._error = f"{self.path}: the log cannot be written: {fault_of(error)}"
        if hasattr(self, "_file"):
            # The file on disk stays readable up to its committed rows.
            abandon(self._file)
        return RunFailed(self._error)


def _file_id(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino

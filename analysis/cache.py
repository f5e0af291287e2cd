"""What was read from logs, kept as Parquet: only files that changed are read from HDF5 again.

The rows of many logs lie together in a *piece*, one Parquet file per table, with the log's number in the column
`file`; the index holds a line per file of a run, with its size and time when it was read. A log that changed is read
anew under a new number, and its old rows are nobody's until pieces are merged; no number is given twice, or old rows
would become a new log's. The index names pieces once they are whole, and pieces that no index names stay for an hour:
several processes may use a cache at once, and one that is killed leaves nothing behind that would be believed. Of a
piece that is damaged the logs are read anew; for whose word is taken, see `cachefolder`.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

import hpclbfl
from hpclbfl.analysis.cachefolder import CacheFolder, CacheUnusable
from hpclbfl.analysis.scan import Found
from hpclbfl.core.text import printable
from hpclbfl.runs.log.reader import RankLog, Table
from hpclbfl.runs.log.schema import DTYPES, SCHEMA_VERSION, TABLES

PIECE_ROWS = 250_000
"""Rows of all tables after which a piece is written: what bounds the memory of a first reading, about 0.2 GB."""
MAX_SMALL_PIECES = 16
"""Pieces below that size (or mostly of nobody's rows) before they are merged."""
RECENT_S = 2.0
"""A file that changed within so many seconds may change again without a new time; it is read anew next time."""
_FORMAT = f"3.{SCHEMA_VERSION}.{hpclbfl.__version__}"


@dataclass(frozen=True)
class Entry:
    """One file of a run as it was when it was read."""

    size: int
    mtime_ns: int
    text: str
    """JSON: what a small file holds; of a log its rank, and the start and end of its steps (`LogSpan`)."""
    problem: str
    """Why the file cannot be used; empty when it can."""
    file: int = -1
    """A log's number in its piece."""
    piece: str = ""
    rows: int = 0
    """Of all tables, in the piece."""


@dataclass
class _Piece:
    rows: int
    """Of all tables."""
    hashes: dict[str, str]
    """Of its files, by name."""


class Cache:
    """Entries by path, and pieces, in a folder that need not exist yet.

    Raises:
        CacheUnusable: see `CacheFolder`.
    """

    def __init__(self, folder: CacheFolder) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._pieces: dict[str, _Piece] = {}
        self._next_file = 0
        self._waiting: dict[str, list[tuple[int, Table]]] = {name: [] for name in TABLES}
        self._unwritten: dict[str, Entry] = {}
        self._unwritten_rows = 0
        self._is_changed = False
        self._began_ns = time.time_ns()
        self._read_index()

    def known(self, found: Found) -> Entry | None:
        """What is known of a file that has not changed; None if it is to be read (again)."""
        entry = self.entries.get(found.path)
        if entry is None or entry.problem or (entry.size, entry.mtime_ns) != (found.size, found.mtime_ns):
            return None
        return entry

    def add(self, found: Found, value: Any, problem: str = "") -> None:
        """Take a small file's content (JSON values), or the reason why there is none."""
        entry = self._entry(found, value, problem)
        self._is_changed |= self.entries.get(found.path) != entry
        self.entries[found.path] = entry

    def add_log(self, found: Found, log: RankLog) -> None:
        """Take a log's rows: all of `steps` and `events`, of the other tables those of rank 0 (see `reader.read_run`).

        Raises:
            CacheUnusable: a piece was due and could not be written.
        """
        rank, span = log.attributes.rank, log.span
        about = {"rank": rank, "start": span.start, "end": span.end}
        entry = replace(self._entry(found, about, ""), file=self._next_file)
        self._next_file += 1
        rows = 0
        for name, table in log.tables.items():
            if len(table) and (name in ("steps", "events") or rank == 0):
                self._waiting[name].append((entry.file, table))
                rows += len(table)
        self._unwritten[found.path] = replace(entry, rows=rows)
        self._unwritten_rows += rows
        if self._unwritten_rows >= PIECE_ROWS:
            self._write_piece()

    def save(self, paths: Iterable[str]) -> None:
        """Write what is new, keep the entries of these paths alone.

        Raises:
            CacheUnusable: it cannot be written.
        """
        self._write_piece()
        gone = self.entries.keys() - set(paths)
        if not (gone or self._is_changed):
            return
        for path in gone:
            del self.entries[path]
        self._merge_pieces()
        used = {entry.piece for entry in self.entries.values()}
        self._pieces = {name: piece for name, piece in self._pieces.items() if name in used}
        self._write_index()
        self.folder.remove_orphans(list(self._pieces))

    def scan(self, table: str) -> pl.LazyFrame:
        """All rows of a table, nobody's included: its columns, and `file`."""
        paths = self._paths(table, self._pieces)
        if not paths:
            return pl.LazyFrame(schema={"file": pl.UInt32, **polars_schema(table)})
        return pl.scan_parquet(paths, glob=False)

    def _entry(self, found: Found, value: Any, problem: str) -> Entry:
        is_recent = found.mtime_ns > self._began_ns - RECENT_S * 1e9
        return Entry(found.size, -1 if is_recent else found.mtime_ns, json.dumps(value), printable(problem))

    def _paths(self, table: str, pieces: Iterable[str]) -> list[str]:
        names = [name for piece in pieces if (name := _file_name(piece, table)) in self._pieces[piece].hashes]
        return [str(self.folder.path / name) for name in names]

    def _read_index(self) -> None:
        content = self.folder.read_index()
        if content is None:
            return
        about = pl.read_parquet_metadata(io.BytesIO(content))
        if about.get("format") != _FORMAT:
            return
        pieces = {name: _Piece(**piece) for name, piece in json.loads(about["pieces"]).items()}
        intact = self.folder.intact({name: seen for piece in pieces.values() for name, seen in piece.hashes.items()})
        self._pieces = {name: piece for name, piece in pieces.items() if piece.hashes.keys() <= intact}
        self._next_file = int(about["next_file"])
        entries = {os.fsdecode(path): Entry(*values) for path, *values in pl.read_parquet(io.BytesIO(content)).rows()}
        self.entries = {
            path: entry for path, entry in entries.items() if not entry.piece or entry.piece in self._pieces
        }
        self._is_changed = len(self.entries) < len(entries)

    def _write_index(self) -> None:
        names = Entry.__dataclass_fields__
        columns = {name: [getattr(entry, name) for entry in self.entries.values()] for name in names}
        # A file's name need not be valid UTF-8.
        paths = pl.Series("path", [os.fsencode(path) for path in self.entries], dtype=pl.Binary)
        about = {
            "format": _FORMAT,
            "pieces": json.dumps({name: vars(piece) for name, piece in self._pieces.items()}),
            "next_file": str(self._next_file),
        }
        content = io.BytesIO()
        frame = pl.DataFrame([paths, *(pl.Series(name, values) for name, values in columns.items())])
        frame.write_parquet(content, compression="zstd", metadata=about)
        self.folder.write_index(content.getvalue())

    def _write_piece(self) -> None:
        if not self._unwritten:
            return
        name = self.folder.new_piece()
        piece = _Piece(self._unwritten_rows, {})
        for table, parts in self._waiting.items():
            if parts:
                frame = to_polars(table, parts)
                self._write_table(name, table, piece, frame.lazy())
                parts.clear()
        self._add_piece(name, piece, self._unwritten)
        self._unwritten.clear()
        self._unwritten_rows = 0
        self._is_changed = True

    def _merge_pieces(self) -> None:
        alive = dict.fromkeys(self._pieces, 0)
        for entry in self.entries.values():
            if entry.piece:
                alive[entry.piece] += entry.rows
        small = [p for p, piece in self._pieces.items() if piece.rows < PIECE_ROWS or alive[p] < piece.rows / 2]
        if len(small) <= MAX_SMALL_PIECES:
            return
        name = self.folder.new_piece()
        moved = {path: entry for path, entry in self.entries.items() if entry.piece in small}
        files = pl.LazyFrame({"file": pl.Series([e.file for e in moved.values()], dtype=pl.UInt32)})
        piece = _Piece(sum(entry.rows for entry in moved.values()), {})
        for table in TABLES:
            if paths := self._paths(table, small):
                rows = pl.scan_parquet(paths, glob=False).join(files, on="file", how="semi")
                self._write_table(name, table, piece, rows)
        self._add_piece(name, piece, moved)

    def _write_table(self, name: str, table: str, piece: _Piece, rows: pl.LazyFrame) -> None:
        file = _file_name(name, table)
        with _explained():
            piece.hashes[file] = self.folder.write(
                file, lambda new: rows.sink_parquet(new, compression="zstd", compression_level=1)
            )

    def _add_piece(self, name: str, piece: _Piece, entries: dict[str, Entry]) -> None:
        self.entries |= {path: replace(entry, piece=name) for path, entry in entries.items()}
        self._pieces[name] = piece


def _file_name(piece: str, table: str) -> str:
    return f"{piece}.{table}.parquet"


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise CacheUnusable(f"cannot be written: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def polars_schema(table: str) -> dict[str, pl.DataType]:
    """Column types of a log's table as a frame: Int64, Float64, String."""
    kinds: dict[str, pl.DataType] = {"i": pl.Int64(), "f": pl.Float64(), "S": pl.String()}
    dtype = DTYPES[table]
    return {name: kinds[dtype[name].kind] for name in dtype.names or ()}


def to_polars(table: str, parts: list[tuple[int, Table]]) -> pl.DataFrame:
    """Rows of several logs as one frame, each with its log's number in the column `file`."""
    numbers = np.repeat(np.array([file for file, _ in parts], np.uint32), [len(rows) for _, rows in parts])
    columns = [pl.Series("file", numbers)]
    for name, kind in polars_schema(table).items():
        values = np.concatenate([rows[name] for _, rows in parts])
        if kind == pl.String():
            # Few texts, many times over.
            texts, places = np.unique(values, return_inverse=True)
            known = pl.Series([printable(text.decode(errors="replace")) for text in texts], dtype=pl.String)
            columns.append(known.gather(places).alias(name))
        else:
            columns.append(pl.Series(name, values))
    return pl.DataFrame(columns)

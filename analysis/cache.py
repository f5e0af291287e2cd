"""What was read from logs, kept as Parquet: only files that changed are read from HDF5 again.

The rows of many logs lie together in a *piece*, one Parquet file per table, with the log's number in the column
`file`; the index (index.parquet) holds a line per file of a run, with its size and time when it was read. A log that
changed is read anew under a new number, and its old rows are nobody's until pieces are merged; no number is given
twice, or old rows would become a new log's. Index and pieces are written under other names and then renamed, and
pieces that no index names stay for an hour: several processes may use a cache at once, and one that is killed leaves
nothing behind that would be believed.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import hpclbfl
from hpclbfl.analysis.scan import Found
from hpclbfl.runlog.reader import RankLog, Table
from hpclbfl.runlog.schema import DTYPES, SCHEMA_VERSION, TABLES

PIECE_ROWS = 250_000
"""Rows of all tables after which a piece is written: what bounds the memory of a first reading, about 0.2 GB."""
MAX_SMALL_PIECES = 16
"""Pieces below that size (or mostly of nobody's rows) before they are merged."""
RECENT_S = 2.0
"""A file that changed within so many seconds may change again without a new time; it is read anew next time."""
ORPHAN_S = 3600.0
"""Age at which a piece that no index names is removed."""
_FORMAT = f"2.{SCHEMA_VERSION}.{hpclbfl.__version__}"


class CacheUnwritable(Exception):
    """The cache's folder cannot be written."""


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


class Cache:
    """Entries by path, and pieces, in a folder that need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._piece_rows: dict[str, int] = {}
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
            CacheUnwritable: a piece was due and could not be written.
        """
        rank = log.attributes.rank
        about = {"rank": rank, "start": log.span.start, "end": log.span.end}
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
            CacheUnwritable: it cannot be written.
        """
        self._write_piece()
        alive = set(paths)
        gone = self.entries.keys() - alive
        if not (gone or self._is_changed):
            return
        for path in gone:
            del self.entries[path]
        self._merge_pieces()
        used = {entry.piece for entry in self.entries.values()}
        self._piece_rows = {name: rows for name, rows in self._piece_rows.items() if name in used}
        self._write_index()
        self._remove_orphans()

    def scan(self, table: str) -> pl.LazyFrame:
        """All rows of a table, nobody's included: its columns, and `file`."""
        paths = [path for piece in self._piece_rows if (path := self._path(piece, table)).exists()]
        if not paths:
            return pl.LazyFrame(schema={"file": pl.UInt32, **polars_schema(table)})
        return pl.scan_parquet(paths)

    def _entry(self, found: Found, value: Any, problem: str) -> Entry:
        is_recent = found.mtime_ns > self._began_ns - RECENT_S * 1e9
        text = json.dumps(value, default=str)
        return Entry(found.size, -1 if is_recent else found.mtime_ns, text, problem)

    def _path(self, piece: str, table: str) -> Path:
        return self.folder / f"{piece}.{table}.parquet"

    def _read_index(self) -> None:
        path = self.folder / "index.parquet"
        try:
            about = pl.read_parquet_metadata(path)
            if about.get("format") != _FORMAT:
                return
            pieces, next_file = json.loads(about["pieces"]), int(about["next_file"])
            if any((self.folder / name).stat().st_size != size for p in pieces.values() for name, size in p["files"]):
                return
            rows = pl.read_parquet(path).rows()
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
            # No cache, or one that cannot be trusted: everything is read anew.
            return
        self.entries = {path: Entry(*values) for path, *values in rows}
        self._piece_rows = {name: int(piece["rows"]) for name, piece in pieces.items()}
        self._next_file = next_file

    def _write_index(self) -> None:
        columns = ("path", *Entry.__dataclass_fields__)
        rows = [(path, *(getattr(e, name) for name in columns[1:])) for path, e in self.entries.items()]
        frame = pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None)
        with _unwritable():
            self._make_folder()
            pieces = {}
            for piece, count in self._piece_rows.items():
                paths = [path for table in TABLES if (path := self._path(piece, table)).exists()]
                pieces[piece] = {"rows": count, "files": [[path.name, path.stat().st_size] for path in paths]}
            new = self.folder / f".index.{os.getpid()}.new"
            about = {"format": _FORMAT, "pieces": json.dumps(pieces), "next_file": str(self._next_file)}
            frame.write_parquet(new, compression="zstd", metadata=about)
            new.replace(self.folder / "index.parquet")

    def _make_folder(self) -> None:
        self.folder.mkdir(exist_ok=True)
        marker = self.folder / ".gitignore"
        if not marker.exists():
            marker.write_text("*\n", encoding="utf-8")

    def _write_piece(self) -> None:
        if not self._unwritten:
            return
        piece = uuid.uuid4().hex[:12]
        with _unwritable():
            self._make_folder()
            for name, tables in self._waiting.items():
                if tables:
                    new = self._path(piece, name).with_suffix(".new")
                    to_polars(name, tables).write_parquet(new, compression="zstd", compression_level=1)
                    new.replace(self._path(piece, name))
                    tables.clear()
        self.entries |= {path: replace(entry, piece=piece) for path, entry in self._unwritten.items()}
        self._piece_rows[piece] = self._unwritten_rows
        self._unwritten.clear()
        self._unwritten_rows = 0
        self._is_changed = True

    def _merge_pieces(self) -> None:
        alive = dict.fromkeys(self._piece_rows, 0)
        for entry in self.entries.values():
            if entry.piece:
                alive[entry.piece] += entry.rows
        small = [p for p, rows in self._piece_rows.items() if rows < PIECE_ROWS or alive[p] < rows / 2]
        if len(small) <= MAX_SMALL_PIECES:
            return
        piece = uuid.uuid4().hex[:12]
        moved = {path: entry for path, entry in self.entries.items() if entry.piece in small}
        files = pl.LazyFrame({"file": pl.Series([e.file for e in moved.values()], dtype=pl.UInt32)})
        with _unwritable():
            for table in TABLES:
                paths = [path for p in small if (path := self._path(p, table)).exists()]
                if paths:
                    new = self._path(piece, table).with_suffix(".new")
                    rows = pl.scan_parquet(paths).join(files, on="file", how="semi")
                    rows.sink_parquet(new, compression="zstd", compression_level=1)
                    new.replace(self._path(piece, table))
        self.entries |= {path: replace(entry, piece=piece) for path, entry in moved.items()}
        self._piece_rows[piece] = sum(entry.rows for entry in moved.values())

    def _remove_orphans(self) -> None:
        limit = time.time() - ORPHAN_S
        for path in self.folder.iterdir():
            is_named = path.name == "index.parquet" or path.name.partition(".")[0] in self._piece_rows
            if path.suffix in (".parquet", ".new") and not is_named:
                with suppress(OSError):
                    if path.stat().st_mtime < limit:
                        path.unlink()


@contextmanager
def _unwritable() -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CacheUnwritable(str(error)) from error


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
            known = pl.Series([text.decode(errors="replace") for text in texts], dtype=pl.String)
            columns.append(known.gather(places).alias(name))
        else:
            columns.append(pl.Series(name, values))
    return pl.DataFrame(columns)

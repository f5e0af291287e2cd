"""What was read of a folder of runs, kept so that only files that changed are read again.

An index holds the content of small files and what is known of each log. The rows of all logs that were read together
form a piece, one Parquet file per table, which is never rewritten. Several processes may use a cache at the same time:
each writes new pieces and then an index that names them, and pieces that no index names are removed an hour later.

The index and the Parquet files have hashes: a damaged file is noticed, and its logs are read again. The index's hash
covers the path and the inode of the cache's folder: an index that was copied or came with an archive is not used.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Any

import polars as pl

import hpclbfl
from hpclbfl.analysis.read.frames import log_frame, log_schema
from hpclbfl.analysis.read.scan import Found
from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.files import create, read_bytes, write_bytes
from hpclbfl.core.text import printable
from hpclbfl.runs.log.reader import RankLog, Table
from hpclbfl.runs.log.schema import SCHEMA_VERSION, TABLES

INDEX = "index"
PIECE_ROWS = 250_000
"""Rows, of all tables, after which a piece is written: it bounds the memory of a first reading to about 0.2 GB."""
MAX_PIECES = 24
"""With more of them, logs in pieces of fewer than PIECE_ROWS rows are read again, into one piece."""
ORPHAN_S = 3600.0
"""Age at which a file that the index does not name is removed; until then another process may be about to name it."""
RECENT_S = 2.0
"""A file that changed within the last seconds may change again without a new modification time: it is read again."""
_FORMAT = f"4.{SCHEMA_VERSION}.{hpclbfl.__version__}"
_HASH_BYTES = 32
_MAX_BYTES = 1 << 40
_THREADS = 4
_OURS = re.compile(rf"([0-9a-f]{{16}}|[0-9a-f]{{12}}-[0-9a-f]{{12}})\.[a-z]+\.parquet|\.{INDEX}\.[0-9a-f]+\.new")
"""Names of pieces, of those of older versions, and of an index that was not finished."""


class CacheUnusable(Exception):
    """The cache's folder cannot be used; the text says why, without the folder's name."""


@dataclass(frozen=True)
class Entry:
    """One file of a run as it was when it was read."""

    size: int
    mtime_ns: int
    content: dict[str, Any] | None
    """What a small file holds; of a log its rank and the start and end of its steps (`LogSpan`); None: unreadable."""
    problem: str
    """Why the file cannot be used; empty when it can."""
    log: int = -1
    """A log's number, by which its rows are found in its piece."""
    piece: str = ""


@dataclass(frozen=True)
class _Piece:
    rows: int
    """Of all tables."""
    hashes: dict[str, str]
    """Of its Parquet files, by table."""


class Cache:
    """Entries by path, and logs' rows, in a folder that need not exist yet.

    Raises:
        CacheUnusable: something else has the folder's name, or others may write into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._pieces: dict[str, _Piece] = {}
        self._unwritten: dict[str, Entry] = {}
        self._tables: dict[str, list[tuple[int, Table]]] = {name: [] for name in TABLES}
        """Rows that are not written yet, by log."""
        self._is_changed = False
        self._began_ns = time.time_ns()
        with suppress(FileNotFoundError):
            _refuse_foreign(folder)
            self._read_index()

    def known(self, found: Found) -> Entry | None:
        """The entry of a file that has not changed; None if it must be read (again)."""
        entry = self.entries.get(found.path)
        if entry is None or entry.problem or (entry.size, entry.mtime_ns) != (found.size, found.mtime_ns):
            return None
        return entry

    def add(self, found: Found, content: dict[str, Any] | None, problem: str = "") -> None:
        """Keep a small file's content, or the reason why there is none."""
        self._put(found, Entry(*self._stamp(found), content, printable(problem)))

    def add_log(self, found: Found, log: RankLog) -> None:
        """Keep a log's rows: all of `steps` and `events`, of the other tables those of rank 0 (see `reader.read_run`).

        Raises:
            CacheUnusable: they cannot be written.
        """
        rank, span, number = log.attributes.rank, log.span, secrets.randbits(63)
        for name, table in log.tables.items():
            if len(table) and (name in ("steps", "events") or rank == 0):
                self._tables[name].append((number, table))
        about = {"rank": rank, "start": span.start, "end": span.end}
        self._unwritten[found.path] = Entry(*self._stamp(found), about, "", number)
        if self._num_unwritten() >= PIECE_ROWS:
            self._write_piece()

    def save(self, paths: Iterable[str]) -> None:
        """Write the index, with the entries of these paths only.

        Raises:
            CacheUnusable: it cannot be written.
        """
        self._write_piece()
        gone = self.entries.keys() - set(paths)
        if not (gone or self._is_changed):
            return
        for path in gone:
            del self.entries[path]
        used = {entry.piece for entry in self.entries.values()}
        self._pieces = {name: piece for name, piece in self._pieces.items() if name in used}
        entries = {path: astuple(entry) for path, entry in self.entries.items()}
        payload = json.dumps([entries, {name: astuple(piece) for name, piece in self._pieces.items()}]).encode()
        with self._writing():
            write_bytes(self.folder / INDEX, self._hash(payload) + payload)
        self._remove_orphans()

    def scan(self, table: str) -> pl.LazyFrame:
        """All rows of a table with their log's number in the column `log`; rows of logs without an entry included."""
        paths = [self._path(name, table) for name, piece in self._pieces.items() if table in piece.hashes]
        if not paths:
            return pl.LazyFrame(schema={"log": pl.Int64, **log_schema(table)})
        return pl.scan_parquet(paths, glob=False)

    def _put(self, found: Found, entry: Entry) -> None:
        self._is_changed |= self.entries.get(found.path) != entry
        self.entries[found.path] = entry

    def _stamp(self, found: Found) -> tuple[int, int]:
        is_recent = found.mtime_ns > self._began_ns - RECENT_S * 1e9
        return found.size, -1 if is_recent else found.mtime_ns

    def _path(self, piece: str, table: str) -> Path:
        return self.folder / f"{piece}.{table}.parquet"

    def _num_unwritten(self) -> int:
        return sum(len(table) for tables in self._tables.values() for _, table in tables)

    def _hash(self, payload: bytes) -> bytes:
        """Of an index: of this version, at this place, in this folder."""
        place = f"{_FORMAT} {self.folder.stat().st_ino} ".encode() + os.fsencode(self.folder.resolve())
        return blake2b(blake2b(place).digest() + payload, digest_size=_HASH_BYTES).digest()

    def _read_index(self) -> None:
        try:
            content = read_bytes(self.folder / INDEX, _MAX_BYTES)
        except DataError:
            return
        payload = content[_HASH_BYTES:]
        if not compare_digest(content[:_HASH_BYTES], self._hash(payload)):
            return
        entries, pieces = json.loads(payload)
        known = {name: _Piece(*values) for name, values in pieces.items()}
        if len(known) > MAX_PIECES:
            known = {name: piece for name, piece in known.items() if piece.rows >= PIECE_ROWS}
        with ThreadPoolExecutor(_THREADS) as pool:
            intact = list(pool.map(self._is_intact, known, known.values()))
        self._pieces = {name: piece for (name, piece), is_so in zip(known.items(), intact, strict=True) if is_so}
        kept = {
            path: entry for path, values in entries.items() if (entry := Entry(*values)).piece in ("", *self._pieces)
        }
        self.entries, self._is_changed = kept, len(kept) < len(entries)

    def _is_intact(self, name: str, piece: _Piece) -> bool:
        """Whether the rows of a piece are there, as they were written."""
        with suppress(DataError, FileNotFoundError):
            return all(
                _hex_hash(read_bytes(self._path(name, table), _MAX_BYTES)) == seen
                for table, seen in piece.hashes.items()
            )
        return False

    def _write_piece(self) -> None:
        if not self._unwritten:
            return
        name, hashes = secrets.token_hex(8), {}
        rows = self._num_unwritten()
        for table, parts in self._tables.items():
            if parts:
                content = io.BytesIO()
                log_frame(table, parts).write_parquet(content, compression="zstd", compression_level=1)
                with self._writing(), create(self._path(name, table)) as file:
                    file.write(content.getbuffer())
                hashes[table] = _hex_hash(content.getbuffer())
                parts.clear()
        self._pieces[name] = _Piece(rows, hashes)
        self.entries |= {path: replace(entry, piece=name) for path, entry in self._unwritten.items()}
        self._unwritten.clear()
        self._is_changed = True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the folder, and say why something in it cannot be written."""
        try:
            if not self.folder.exists():
                self.folder.mkdir(mode=0o700, exist_ok=True)
                with suppress(FileExistsError), create(self.folder / ".gitignore") as file:
                    file.write(b"*\n")
            yield
        except OSError as error:
            raise CacheUnusable(f"cannot be written: {(error.strerror or str(error)).lower()}") from error
        except EnvironmentFault as error:
            raise CacheUnusable(str(error)) from error

    def _remove_orphans(self) -> None:
        named = {self._path(name, table).name for name, piece in self._pieces.items() for table in piece.hashes}
        limit = time.time() - ORPHAN_S
        for path in self.folder.iterdir():
            # A directory or what cannot be removed stays; of a link the link is removed.
            with suppress(OSError):
                if _OURS.fullmatch(path.name) and path.name not in named and path.lstat().st_mtime < limit:
                    path.unlink()


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that is not this user's alone. Raises FileNotFoundError where there is none."""
    try:
        about = folder.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheUnusable(f"cannot be used: {(error.strerror or str(error)).lower()}") from error
    if stat.S_ISLNK(about.st_mode):
        raise CacheUnusable("is a link, and what it points to is not touched; remove the link")
    if not stat.S_ISDIR(about.st_mode):
        raise CacheUnusable("cannot be used: not a directory")
    if about.st_uid != os.geteuid():
        raise CacheUnusable("belongs to another user")
    if stat.S_IMODE(about.st_mode) & 0o022:
        raise CacheUnusable("others may write into it; remove it, and it is made anew")


def _hex_hash(content: bytes | memoryview) -> str:
    return blake2b(content, digest_size=_HASH_BYTES).hexdigest()

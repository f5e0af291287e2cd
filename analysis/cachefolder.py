"""The cache's folder on disk: whose it is, what lies in it is what this user wrote, and nothing else is deleted.

The index begins with a keyed hash of all that follows, under a key that this user alone can read (`core.userkey`), and
names every piece with its files' hashes: what somebody else wrote, or what was damaged, is not believed. The index is
bound to the folder's path, so that one that was copied from elsewhere is not believed either. The names of pieces are
marked with the same key: only what bears such a name is ever removed. No link is followed.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from hpclbfl.core.files import create

INDEX = "index"
ORPHAN_S = 3600.0
"""Age at which a file of ours that no index names is removed: another process may be about to name it."""
_MAC_BYTES = 32
_BLOCK = 1 << 20
_THREADS = 4
_OURS = re.compile(r"\.?([0-9a-f]{12})-([0-9a-f]{12})\.\w+(\.\w+)?")
"""Names of pieces' files, and of an index that is being written."""


class CacheUnusable(Exception):
    """The cache's folder is not there to be used; the text says why, without the folder's name."""


class CacheFolder:
    """A folder that is made when something is first written.

    Args:
        path: the folder.
        key: the secret that marks what is ours.

    Raises:
        CacheUnusable: what bears this name is a link, no folder, or not this user's alone.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key
        with suppress(FileNotFoundError), self._opened():
            pass

    def read_index(self) -> bytes | None:
        """What `write_index` was given last; None where there is none, or none of ours.

        Raises:
            CacheUnusable: see the class.
        """
        try:
            with self._opened() as folder, _opened_file(INDEX, folder) as file:
                content = file.read()
        except OSError:
            return None
        mac, payload = content[:_MAC_BYTES], content[_MAC_BYTES:]
        return payload if hmac.compare_digest(mac, self._mac(payload)) else None

    def write_index(self, payload: bytes) -> None:
        """Put an index in the place of the one there is.

        Raises:
            CacheUnusable: it cannot be written.
        """
        new = f".{self.new_piece()}.new"
        with self._written() as folder:
            with create(new, folder=folder) as file:
                file.write(self._mac(payload) + payload)
            os.rename(new, INDEX, src_dir_fd=folder, dst_dir_fd=folder)

    def new_piece(self) -> str:
        """A name that no other piece has or will have."""
        mark = secrets.token_hex(6)
        return f"{mark}-{self._tag(mark)}"

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> str:
        """Write a new file and return the hash of its content.

        Args:
            name: a new piece's name, a dot, and what tells its files apart.
            write: writes into the file that it is given.

        Raises:
            CacheUnusable: it cannot be written.
        """
        with self._written() as folder:
            with create(name, folder=folder) as file:
                write(file)
            return self._hash(name, folder)

    def intact(self, hashes: dict[str, str]) -> set[str]:
        """Those of the files that are there with these hashes."""

        def is_intact(item: tuple[str, str]) -> bool:
            with suppress(OSError):
                return hmac.compare_digest(self._hash(item[0], folder), item[1])
            return False

        with self._opened() as folder, ThreadPoolExecutor(_THREADS) as pool:
            return {name for name, is_so in zip(hashes, pool.map(is_intact, hashes.items()), strict=True) if is_so}

    def remove_orphans(self, kept: Sequence[str]) -> None:
        """Remove what is ours, is of no piece that is kept, and is old enough."""
        limit = time.time() - ORPHAN_S
        with suppress(OSError), self._opened() as folder:
            for name in os.listdir(folder):  # noqa: PTH208 (a descriptor)
                found = _OURS.fullmatch(name)
                if found is None or name.startswith(tuple(f"{piece}." for piece in kept)):
                    continue
                if not hmac.compare_digest(found[2], self._tag(found[1])):
                    continue
                with suppress(OSError):
                    if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < limit:
                        # Of a link this removes the link.
                        os.unlink(name, dir_fd=folder)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor. Raises FileNotFoundError."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(self.path, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.path.is_symlink():
                raise CacheUnusable("is a link, and what it points to is not touched; remove the link") from error
            raise CacheUnusable(f"cannot be used: {(error.strerror or str(error)).lower()}") from error
        try:
            about = os.fstat(folder)
            if about.st_uid != os.geteuid():
                raise CacheUnusable("belongs to another user")
            if stat.S_IMODE(about.st_mode) & 0o022:
                raise CacheUnusable("others may write into it; remove it, and it is made anew")
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _written(self) -> Iterator[int]:
        """As `_opened`; makes the folder, and says why something in it cannot be written."""
        try:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            with self._opened() as folder:
                with suppress(FileExistsError), create(".gitignore", folder=folder) as file:
                    file.write(b"*\n")
                yield folder
        except OSError as error:
            raise CacheUnusable(f"cannot be written: {(error.strerror or str(error)).lower()}") from error

    def _hash(self, name: str, folder: int) -> str:
        found = blake2b(digest_size=_MAC_BYTES)
        with _opened_file(name, folder) as file:
            while block := file.read(_BLOCK):
                found.update(block)
        return found.hexdigest()

    def _mac(self, payload: bytes) -> bytes:
        found = blake2b(os.fsencode(self.path.resolve()) + b"\0", key=self._key, digest_size=_MAC_BYTES)
        found.update(payload)
        return found.digest()

    def _tag(self, mark: str) -> str:
        return blake2b(mark.encode(), key=self._key, digest_size=6).hexdigest()


@contextmanager
def _opened_file(name: str, folder: int) -> Iterator[BinaryIO]:
    # Opening a pipe that nobody writes to would never return.
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{name} is not a regular file")
        yield file

"""Files: written completely or not at all, never through a link; read only if regular and small enough."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hpclbfl.core.errors import DataError, EnvironmentFault


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it cannot be read, is not a regular file, or is larger; one line that names it.
    """
    content = read_begin(path, limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: is larger than {limit:,} bytes")
    return content


def read_begin(path: Path, count: int) -> bytes:
    """Read the first `count` bytes of a regular file, or all of a shorter one; raises as `read_bytes` does."""
    return _read(path, count, lambda size: 0)


def read_end(path: Path, count: int, begin: int = 0) -> bytes:
    """Read the last `count` bytes of a regular file, but none before byte `begin`; raises as `read_bytes` does."""
    return _read(path, count, lambda size: max(begin, size - count))


def _read(path: Path, count: int, place: Callable[[int], int]) -> bytes:
    """Read at most `count` bytes of a regular file, from a position computed from its size."""
    try:
        # Opening a pipe without a writer would block forever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise DataError(f"{path}: is not a regular file")
    with os.fdopen(handle, "rb") as file:
        try:
            file.seek(place(about.st_size))
            # read() allocates as much as it is asked for; the file may still grow a little.
            return file.read(min(count, about.st_size + (1 << 20)))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8); see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: a reader sees the old content or the new one, also after a crash.

    Raises:
        EnvironmentFault: the file cannot be written; one line that names it.
    """
    with replacing(path) as file:
        file.write(content)


def write_new(path: Path, content: bytes | memoryview) -> None:
    """Create a file that outlives a crash of the machine. Raises OSError, and then leaves no file; see `create`."""
    with create(path) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def prepare_output(path: Path) -> None:
    """Create the folder of an output file (`--out`) and check that the file can be written, before work begins.

    Raises:
        EnvironmentFault: the folder cannot be created or written, or the path is not a file.
    """
    with explained_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_is_file(path)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_output(path: Path, content: bytes) -> None:
    """Write an output file and create its folder. See `prepare_output` and `write_bytes`."""
    prepare_output(path)
    write_bytes(path, content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces the path if the block ends without an error; otherwise nothing changes.

    A link of that name is replaced, not followed.

    Raises:
        EnvironmentFault: see `write_bytes`.
    """
    with replacing_name(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def replacing_name(path: Path) -> Iterator[Path]:
    """Like `replacing`, for libraries that open files by name: yield the name of a new, empty file."""
    # In the same folder, so that the rename is atomic.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    with explained_writes(path):
        _check_is_file(path)
        try:
            create(temporary).close()
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _check_is_file(path: Path) -> None:
    # Most important for devices: as root, `-o /dev/null` would replace it by a file.
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "exists and is not a file")


def create(path: Path | str, mode: int = 0o666, folder: int | None = None) -> BinaryIO:
    """Open a new file for writing; FileExistsError if the name is taken, also by a link.

    Args:
        mode: its permissions, before the process's umask.
        folder: descriptor of the open folder to which a relative path refers.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, mode, dir_fd=folder), "wb")


def make_folder(path: Path) -> None:
    """Create a folder and its parents; existing ones stay as they are.

    Raises:
        EnvironmentFault: it cannot be created, or it is a link: nothing behind a link may change.
    """
    with explained_writes(path):
        if path.is_symlink():
            raise EnvironmentFault(f"{path}: is a link, and what it points to is not touched; remove the link")
        path.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder survive a crash of the machine."""
    # Some file systems refuse this; there the rename is durable anyway.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def explained_writes(path: Path) -> Iterator[None]:
    """Turn an OSError from writing to the path into an EnvironmentFault of one line."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EnvironmentFault(f"{path}: cannot be written: {reason}; choose a writable place") from error

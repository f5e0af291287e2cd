"""Files: written whole or not at all, never through a link, and read only where they are regular and small enough."""

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
        FileNotFoundError: there is none.
        DataError: it cannot be read, is no regular file, or is larger; one line that names it.
    """
    content = read_begin(path, limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: is larger than {limit:,} bytes")
    return content


def read_begin(path: Path, count: int) -> bytes:
    """Read the first `count` bytes of a regular file, or all of a shorter one; raises as `read_bytes` does."""
    return _read(path, count, lambda size: 0)


def read_end(path: Path, count: int, begin: int = 0) -> bytes:
    """Read the last `count` bytes of a regular file, or what there is from byte `begin` on; see `read_bytes`."""
    return _read(path, count, lambda size: max(begin, size - count))


def _read(path: Path, count: int, place: Callable[[int], int]) -> bytes:
    """Read at most `count` bytes of a regular file, from the place that follows from its size."""
    try:
        # Opening a pipe that nobody writes to would never return.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise DataError(f"{path}: is no regular file")
    with os.fdopen(handle, "rb") as file:
        try:
            file.seek(place(about.st_size))
            # Memory is taken for as much as is asked for; a file may still grow a little.
            return file.read(min(count, about.st_size + (1 << 20)))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8); see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all: a reader sees the old one or the new one, also after a crash.

    Raises:
        EnvironmentFault: the file cannot be written; one line that names it.
    """
    with replacing(path) as file:
        file.write(content)


def prepare_output(path: Path) -> None:
    """Make the folder of a file that the user wants (`--out`), and see that it can be written, before work begins.

    Raises:
        EnvironmentFault: the folder cannot be made or written, or something else has the file's name.
    """
    with explained_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "the name is that of something else than a file")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user wants: its folder is made, too. See `prepare_output` and `write_bytes`."""
    prepare_output(path)
    write_bytes(path, content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes the path's place, on disk, when the block ends well; else all stays as it was.

    A link of that name is replaced, not followed.

    Raises:
        EnvironmentFault: see `write_bytes`.
    """
    with replacing_name(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def replacing_name(path: Path) -> Iterator[Path]:
    """As `replacing`, for what opens its files by itself: yield the name of a new, empty file."""
    # In the same folder, for a rename that is one step.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    with explained_writes(path):
        if path.exists() and not path.is_file():
            # A device, above all: for root `-o /dev/null` would put a file in its place.
            raise FileExistsError(errno.EEXIST, "the name is that of something else than a file")
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


def create(path: Path | str, mode: int = 0o666, folder: int | None = None) -> BinaryIO:
    """Open a new file for writing; FileExistsError where the name is taken, also by a link.

    Args:
        mode: its permissions, less the process's mask.
        folder: descriptor of the open folder that a relative path is seen from.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, mode, dir_fd=folder)
    return os.fdopen(handle, "wb")


def make_folder(path: Path) -> None:
    """Make a folder with its parents; what is there stays.

    Raises:
        EnvironmentFault: it cannot be made, or the name is a link: what lies there is not ours to change.
    """
    with explained_writes(path):
        if path.is_symlink():
            raise EnvironmentFault(f"{path}: is a link, and what it points to is not touched; remove the link")
        path.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a crash of the machine."""
    # Some file systems refuse this; the rename holds there all the same.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def explained_writes(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing to the path into an EnvironmentFault of one line."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EnvironmentFault(f"{path}: cannot be written: {reason}; give a place that can be") from error

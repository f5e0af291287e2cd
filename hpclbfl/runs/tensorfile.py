"""Files of tensors, checkpoints and trained models: the boundary through which all of them are read.

torch's own format is a pickle in an archive. Of pickles nothing is taken but tensors, plain values and the classes that
the caller names; the archive's checksums, which torch does not look at, are checked where the file has none of ours.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from hpclbfl.core.errors import DataError
from hpclbfl.core.files import read_bytes
from hpclbfl.core.text import MAX_SHOWN, printable

MAX_BYTES = 1 << 40
"""Of a file: a terabyte; a pipe or a device never ends."""

# What torch raises for content that is not its own.
_UNREADABLE = (
    *(OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError),
    *(UnpicklingError, ImportError, ArithmeticError, MemoryError, zipfile.BadZipFile, zlib.error),
)


def to_bytes(value: Any) -> memoryview:
    """A value of tensors and plain values as the bytes of a file."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def checksum(content: bytes | memoryview) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: Path, sha256: str | None, classes: Sequence[Any] = ()) -> Any:
    """Read what `to_bytes` made.

    Args:
        path: the file.
        sha256: its checksum; None: not known, and the archive's own are looked at.
        classes: may be unpickled besides tensors and plain values.

    Raises:
        DataError: it is not there, damaged, or holds anything else; one line that names it.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is damaged: is not there") from error
    if sha256 is not None and checksum(content) != sha256:
        raise DataError(f"{path}: is damaged: its content does not fit its checksum")
    try:
        if sha256 is None:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if (torn := archive.testzip()) is not None:
                    raise DataError(f"{path}: is damaged: {printable(torn)} in it does not fit its checksum")
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: is damaged: {printable(reason, MAX_SHOWN)}") from error

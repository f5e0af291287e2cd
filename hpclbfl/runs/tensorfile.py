"""Files of tensors (checkpoints and trained models): the only place that reads them.

torch's format is a pickle in a ZIP archive. Only tensors, plain values and the classes that the caller names are
unpickled. The archive's checksums, which torch ignores, are verified unless the caller knows the file's checksum.
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
"""Largest file, bytes."""

# What torch raises for content that it did not write.
_UNREADABLE = (
    *(OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError),
    *(UnpicklingError, ImportError, ArithmeticError, MemoryError, zipfile.BadZipFile, zlib.error),
)


def to_bytes(value: Any) -> memoryview:
    """Serialise tensors and plain values as the content of a file."""
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
        sha256: its checksum; None if it is not known: then the archive's own checksums are verified.
        classes: that may be unpickled besides tensors and plain values.

    Raises:
        DataError: it is missing or damaged, or holds anything else; one line that names it.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing") from error
    if sha256 is not None and checksum(content) != sha256:
        raise DataError(f"{path}: is damaged: its content does not match its checksum")
    try:
        if sha256 is None:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if (torn := archive.testzip()) is not None:
                    raise DataError(f"{path}: is damaged: {printable(torn)} in it does not match its checksum")
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: is damaged: {printable(reason, MAX_SHOWN)}") from error

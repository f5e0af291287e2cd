"""Use of the HDF5 library: file access properties, types, texts and error messages."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5p, h5pl, h5t

FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError)
"""What h5py raises for damaged files."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of a file."""

INTEGERS = "integers"
"""In place of a type: signed integers of any width and byte order."""

# In SWMR mode HDF5 retries a block with a wrong checksum 100 times and doubles the pause each time, from 1 ns on; with
# a damaged file that never ends. 26 attempts take about 0.1 s.
_READ_ATTEMPTS = 26
_MAX_HOLES = 100_000
_SYSTEM_REASON = re.compile(r"error message = '([^']+)'")
_TITLES = {
    h5t.STRING: "texts",
    h5t.REFERENCE: "references",
    h5t.OPAQUE: "opaque bytes",
    h5t.VLEN: "lists",
    h5t.ARRAY: "arrays",
    h5t.ENUM: "names of an enumeration",
    h5t.BITFIELD: "bits",
    h5t.TIME: "times",
}


def fault_of(error: Exception) -> str:
    """The reason of an error inside HDF5: the system's if there is one, else the first line."""
    found = _SYSTEM_REASON.search(str(error))
    if found:
        return found.group(1)
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def fixed_text(text: str) -> Any:
    """A text as the value of a fixed-length attribute; see `plain_text`."""
    raw = plain_text(text).encode()
    return np.array(raw, h5py.string_dtype(length=max(1, len(raw))))


def plain_text(text: str) -> str:
    """A text without lone surrogates and NUL, which HDF5 cannot store."""
    return text.encode(errors="replace").decode().replace("\0", " ")


@cache
def access(is_live: bool) -> Any:
    """Properties for opening a file to read it; `is_live`: it may still be written (SWMR)."""
    found = h5p.create(h5p.FILE_ACCESS)
    # Shared file systems (Lustre, NFS) often refuse HDF5's locks, and readers need none.
    found.set_file_locking(False, True)
    if not is_live:
        # Closes open objects with the file. Not for logs: this process may have one open for writing.
        found.set_fclose_degree(h5f.CLOSE_STRONG)
    else:
        found.set_libver_bounds(h5f.LIBVER_LATEST, h5f.LIBVER_LATEST)
        # h5py does not expose this limit, but its extension module is linked to the C library that has it.
        set_attempts = getattr(ctypes.PyDLL(h5p.__file__), "H5Pset_metadata_read_attempts", None)
        if set_attempts is not None:
            set_attempts.argtypes = [ctypes.c_int64, ctypes.c_uint]
            set_attempts(found.id, _READ_ATTEMPTS)
    return found


@cache
def forbid_plugins() -> None:
    """Remove all folders from which HDF5 loads plugins: a file that names an unknown filter would run code."""
    while h5pl.size():
        h5pl.remove(0)


@cache
def memory_type(dtype: np.dtype[Any]) -> Any:
    """HDF5's type for elements of a NumPy type."""
    return h5t.py_create(dtype)


@cache
def file_types(dtype: np.dtype[Any] | str) -> tuple[Any, ...]:
    """HDF5's types of the datasets that can be read with this NumPy type, or INTEGERS."""
    if dtype == INTEGERS:
        return tuple(h5t.py_create(np.dtype(f"{order}i{width}")) for width in (8, 4, 2, 1) for order in "<>")
    return (h5t.py_create(np.dtype(dtype), logical=True),)


def type_title(kind: Any) -> str:
    """Name of an HDF5 type in messages."""
    group = kind.get_class()
    if group == h5t.INTEGER:
        sign = "" if kind.get_sign() == h5t.SGN_2 else "unsigned "
        return f"{sign}{8 * kind.get_size()}-bit integers"
    if group == h5t.FLOAT:
        return f"{8 * kind.get_size()}-bit floats"
    if group == h5t.COMPOUND:
        names = [kind.get_member_name(index).decode(errors="replace") for index in range(kind.get_nmembers())]
        return f"rows of {len(names)} columns ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    return _TITLES.get(group, "something unknown")


def occupied_bytes(path: Path, about: os.stat_result) -> int:
    """Bytes of a file, without its holes."""
    # Fewer blocks than bytes: the file has holes, or the file system compresses it.
    if about.st_blocks * 512 >= about.st_size:
        return about.st_size
    found = place = 0
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_MAX_HOLES):
            begin = os.lseek(handle, place, os.SEEK_DATA)
            place = os.lseek(handle, begin, os.SEEK_HOLE)
            found += place - begin
    except OSError:
        # Only a hole is left, or the file system does not report holes.
        return found or about.st_size
    finally:
        os.close(handle)
    return found

"""Reading HDF5 files of any origin; the only place that opens them for reading.

The HDF5 library trusts the file: it follows links into other files, loads a plugin for an unknown filter, fills a
buffer with as many elements as the dataset claims, and allocates any amount of memory. Therefore links, storage,
filters, type and shape are checked before anything is read, and nothing larger than the file is read.

A file is open until its `H5File` is closed, or for as long as one of its objects is in use.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from h5py import h5d, h5f, h5g, h5l, h5o, h5s, h5z

from hpclbfl.core.h5library import (
    FAULTS,
    INTEGERS,
    access,
    fault_of,
    file_types,
    forbid_plugins,
    memory_type,
    type_title,
)
from hpclbfl.core.h5object import MAX_NAMES, Array, DamagedFile, H5Object, Origin, explained
from hpclbfl.core.text import printable

MAX_CHUNK = 64 << 20
"""Bytes of a chunk."""

_MAX_NAME = 100

_FILTERS = (h5z.FILTER_FLETCHER32,)
"""Accepted filters: a checksum. None compresses, so a dataset is never larger than its file."""


class Dataset(H5Object):
    """A dataset whose storage, type and shape have been checked."""

    def __init__(self, origin: Origin, name: str, handle: Any, space: Any, width: int, dtype: np.dtype[Any]) -> None:
        super().__init__(origin, name, handle)
        self._space, self._width = space, width
        self.dtype = dtype
        """NumPy type of what is read."""
        self.shape: tuple[int, ...] = space.get_simple_extent_dims()

    def __len__(self) -> int:
        return self.shape[0]

    @explained
    def read(self) -> Array:
        """Read all elements.

        Raises:
            DamagedFile: it cannot be read, or some of it was never written.
        """
        found = self._allocate(self.shape)
        # HDF5 returns zeros for what was never written.
        if self._id.get_storage_size() < found.size * self._width:
            raise self.fault(f"is torn: parts of '{self.name}' were never written")
        if self._origin.is_live and (self._id.get_offset() or 0) + found.size * self._width > self._origin.size():
            raise self.fault(f"is torn: cut short within '{self.name}'")
        if found.size:
            self._id.read(h5s.ALL, h5s.ALL, found, memory_type(self.dtype))
        return found

    @explained
    def rows(self, begin: int, end: int) -> Array:
        """Read the elements `begin` to before `end` of a one-dimensional dataset.

        Raises:
            DamagedFile: they do not exist or cannot be read.
        """
        if not 0 <= begin <= end <= self.shape[0]:
            raise self.fault(f"is torn: '{self.name}' has {self.shape[0]} elements, not {begin} to {end}")
        found = self._allocate((end - begin,))
        if found.size:
            if self._origin.is_live:
                self._check_end(end)
            # A copy: several threads may read from one dataset.
            space = self._space.copy()
            space.select_hyperslab((begin,), found.shape)
            self._id.read(h5s.create_simple(found.shape), space, found, memory_type(self.dtype))
        return found

    def _allocate(self, shape: tuple[int, ...]) -> Array:
        """A buffer for elements of the dataset; they cannot have more bytes than the file."""
        num_bytes, available = math.prod(shape) * self._width, self._origin.occupied()
        if num_bytes > available:
            raise self.fault(f"is torn: '{self.name}' declares {num_bytes:,} bytes, the file has {available:,}")
        return np.zeros(shape, self.dtype)

    def _check_end(self, end: int) -> None:
        """Check that the file contains all chunks; HDF5 does not check this in SWMR mode."""
        last = 0

        def note(chunk: Any) -> None:
            nonlocal last
            if chunk.chunk_offset[0] < end:
                last = max(last, chunk.byte_offset + chunk.size)

        self._id.chunk_iter(note)
        if last > self._origin.size():
            raise self.fault(f"is torn: cut short within '{self.name}'")


class Group(H5Object):
    """A group; the root of a file is one."""

    @explained
    def names(self) -> list[str]:
        """Names of its groups and datasets, in order."""
        found: list[bytes] = []

        def note(name: bytes) -> bool | None:
            found.append(name)
            return True if len(found) > MAX_NAMES else None

        self._id.links.iterate(note)
        if len(found) > MAX_NAMES:
            raise self.fault(f"holds more than {MAX_NAMES} objects{self._where()}")
        return [name.decode(errors="replace") for name in found]

    @explained
    def group(self, name: str) -> Group | None:
        """Open a group in it; None if the name is that of a dataset."""
        handle = self._open(name)
        return Group(self._origin, self._inner(name), handle) if isinstance(handle, h5g.GroupID) else None

    @explained
    def dataset(self, name: str, dtype: np.dtype[Any] | str, shape: tuple[int | None, ...] = (None,)) -> Dataset:
        """Open a dataset in it, without reading data.

        Args:
            name: its name.
            dtype: its exact type; INTEGERS: signed integers of any width, read as int64.
            shape: its shape; None stands for any length.

        Raises:
            DamagedFile: it is missing, stored in another file, or has another type or shape.
        """
        inner = self._inner(name)
        handle = self._open(name)
        if not isinstance(handle, h5d.DatasetID):
            raise self.fault(f"'{inner}' is not a dataset")
        found = handle.get_type()
        width = found.get_size()
        self._check_storage(inner, handle, width)
        if not any(map(found.equal, file_types(dtype))):
            raise self.fault(f"'{inner}' holds {type_title(found)}; expected {type_title(file_types(dtype)[0])}")
        space = handle.get_space()
        extent = space.get_simple_extent_dims() if space.get_simple_extent_type() == h5s.SIMPLE else ()
        if len(extent) != len(shape) or any(b not in (None, a) for a, b in zip(extent, shape, strict=True)):
            raise self.fault(f"'{inner}' has shape {_shape_title(extent)}; expected {_shape_title(shape)}")
        read_as = np.dtype(np.int64) if dtype == INTEGERS else np.dtype(dtype)
        return Dataset(self._origin, inner, handle, space, width, read_as)

    def _open(self, name: str) -> Any:
        inner = self._inner(name)
        raw = name.encode()
        try:
            link = self._id.links.get_info(raw)
        except RuntimeError:
            if self._id.links.exists(raw):
                raise
            raise self.fault(f"has no '{inner}'") from None
        if link.type != h5l.TYPE_HARD:
            raise self.fault(f"'{inner}' is a link to another place, and such links are not followed")
        return h5o.open(self._id, raw)

    def _check_storage(self, name: str, handle: Any, width: int) -> None:
        # Before the shape is queried: for a virtual dataset, that opens the files to which it refers.
        plan = handle.get_create_plist()
        layout = plan.get_layout()
        if layout == h5d.VIRTUAL or plan.get_external_count():
            raise self.fault(f"'{name}' has its data in other files, which are not read")
        if any(plan.get_filter(index)[0] not in _FILTERS for index in range(plan.get_nfilters())):
            raise self.fault(f"'{name}' is compressed or filtered, which is not supported; use h5repack -f NONE")
        if layout == h5d.CHUNKED:
            size = width * math.prod(plan.get_chunk())
            if size > MAX_CHUNK:
                raise self.fault(f"'{name}' has chunks of {size:,} bytes; the limit is {MAX_CHUNK:,}")

    def _inner(self, name: str) -> str:
        name = printable(name, _MAX_NAME)
        return f"{self.name}/{name}" if self.name else name


class H5File(Group):
    """A file, open for reading; a context manager.

    Args:
        path: the file.
        is_live: whether it may still be written (SWMR).

    Raises:
        DamagedFile: it is missing, not a regular file, or not a complete HDF5 file.
    """

    def __init__(self, path: Path, is_live: bool = False) -> None:
        forbid_plugins()
        try:
            # Opening a pipe would wait for a writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise DamagedFile(path, "is not a regular file")
            flags = h5f.ACC_RDONLY | (h5f.ACC_SWMR_READ if is_live else 0)
            handle = h5f.open(os.fsencode(path), flags, access(is_live))
        except FileNotFoundError:
            raise DamagedFile(path, "is not there") from None
        except FAULTS as error:
            raise DamagedFile(path, f"is torn, HDF5 cannot open it ({fault_of(error)})") from error
        super().__init__(Origin(path, handle, is_live), "", handle)

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._id.close()

    def __enter__(self) -> H5File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _shape_title(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"

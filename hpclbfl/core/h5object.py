"""An object in an HDF5 file of any origin, and its attributes; see `h5file`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from h5py import h5a, h5o, h5s, h5t
from numpy.typing import NDArray

from hpclbfl.core.errors import DataError
from hpclbfl.core.h5library import FAULTS, fault_of, memory_type, occupied_bytes, type_title
from hpclbfl.core.h5texts import UnreadableTexts, read_texts
from hpclbfl.core.text import printable, shown

MAX_NAMES = 256
"""Objects in a group, or attributes of an object."""
MAX_TEXT = 16 << 20
"""Bytes of a text attribute; a job's config takes some 10 KB."""

Array = NDArray[Any]
Value = int | float | str
"""Of an attribute."""


class DamagedFile(DataError):
    """An HDF5 file that is missing, damaged, or not what it should be; one line that names it."""

    def __init__(self, path: Path, reason: str) -> None:
        # The reason quotes names and values from the file.
        self.path, self.reason = path, printable(reason, _MAX_REASON)
        super().__init__(f"{path}: {self.reason}")


_MAX_REASON = 600

_NUMBER, _FLOAT = np.dtype(np.int64), np.dtype(np.float64)

_Owner = TypeVar("_Owner", bound="H5Object")
_Args = ParamSpec("_Args")
_Found = TypeVar("_Found")


def explained(method: Callable[Concatenate[_Owner, _Args], _Found]) -> Callable[Concatenate[_Owner, _Args], _Found]:
    """Turn the exceptions of h5py into a DamagedFile."""

    @wraps(method)
    def call(self: _Owner, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Found:
        try:
            return method(self, *args, **kwargs)
        except FAULTS as error:
            raise DamagedFile(self.path, f"is torn, HDF5 cannot read it ({fault_of(error)})") from error

    return call


class Origin:
    """The file that contains an object.

    Args:
        path: the file.
        handle: h5py's low-level file; it stays open for as long as one of its objects is in use.
        is_live: whether the file may still be written.
    """

    def __init__(self, path: Path, handle: Any, is_live: bool) -> None:
        self.path, self.is_live = path, is_live
        self.handle = handle
        self.descriptor: int = handle.get_vfd_handle()
        self._occupied = 0

    def size(self) -> int:
        """Its present size, bytes."""
        return os.fstat(self.descriptor).st_size

    def occupied(self) -> int:
        """Bytes without holes, which let a small file claim any size."""
        if self.is_live or not self._occupied:
            self._occupied = occupied_bytes(self.path, os.fstat(self.descriptor))
        return self._occupied


class H5Object:
    """A group or dataset in a file.

    Args:
        origin: the file.
        name: its path in the file, for messages; empty for the root.
        handle: h5py's low-level object, which is about three times as fast to read as the high-level one.
    """

    def __init__(self, origin: Origin, name: str, handle: Any) -> None:
        self.path, self.name = origin.path, name
        self._origin, self._id = origin, handle

    def fault(self, reason: str) -> DamagedFile:
        """An error about this file, to be raised."""
        return DamagedFile(self.path, reason)

    @explained
    def has(self, name: str) -> bool:
        """Whether it has an attribute of this name."""
        return bool(h5a.exists(self._id, name.encode()))

    @explained
    def integer(self, name: str, low: int = 0, high: int = 2**31 - 1) -> int:
        """Read an attribute that is a whole number.

        Raises:
            DamagedFile: it is missing, or not a whole number from `low` to `high`.
        """
        value = self._value(name)
        if not isinstance(value, int) or not low <= value <= high:
            raise self.fault(f"attribute '{name}' is {shown(value)}; expected a whole number from {low} to {high}")
        return value

    @explained
    def text(self, name: str) -> str:
        """Read an attribute that is a text; bytes that are not UTF-8 are replaced.

        Raises:
            DamagedFile: it is missing, not a text, or too long.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self.fault(f"attribute '{name}' is {value}; expected a text")
        return value

    @explained
    def texts(self, name: str, at_most: int) -> tuple[str, ...]:
        """Read an attribute that is a list of 1 to `at_most` texts; see `text`."""
        attribute = self._attribute(name)
        space = attribute.get_space()
        if space.get_simple_extent_type() != h5s.SIMPLE or attribute.get_type().get_class() != h5t.STRING:
            raise self.fault(f"attribute '{name}' is not a list of texts")
        shape = space.get_simple_extent_dims()
        if len(shape) != 1 or not 0 < shape[0] <= at_most:
            raise self.fault(f"attribute '{name}' has shape {shape}; expected 1 to {at_most:,} texts")
        return tuple(raw.decode(errors="replace") for raw in self._content(attribute, name, shape).tolist())

    @explained
    def attributes(self) -> dict[str, Value]:
        """Read all attributes.

        Raises:
            DamagedFile: one of them is neither a number nor a text.
        """
        count = h5a.get_num_attrs(self._id)
        if count > MAX_NAMES:
            raise self.fault(f"has {count:,} attributes{self._where()}; the limit is {MAX_NAMES}")
        names = (h5a.open(self._id, index=index).name.decode(errors="replace") for index in range(count))
        return {name: self._value(name) for name in names}

    def _attribute(self, name: str) -> Any:
        try:
            return h5a.open(self._id, name.encode())
        except KeyError:
            if h5a.exists(self._id, name.encode()):
                raise
            raise self.fault(f"has no attribute '{name}'{self._where()}") from None

    def _value(self, name: str) -> Value:
        attribute = self._attribute(name)
        # h5py does not check that the value fits the buffer.
        if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
            raise self.fault(f"attribute '{name}' is not a single value")
        content = self._content(attribute, name, ()).item()
        return content if isinstance(content, int | float) else content.decode(errors="replace")

    def _content(self, attribute: Any, name: str, shape: tuple[int, ...]) -> Array:
        """Read an attribute of this shape: numbers, or texts as bytes."""
        kind = attribute.get_type()
        group, width = kind.get_class(), kind.get_size()
        if group == h5t.STRING and kind.is_variable_str():
            return self._variable_texts(name, shape)
        if group == h5t.STRING:
            if attribute.get_storage_size() > min(MAX_TEXT, self._origin.occupied()):
                raise self.fault(f"attribute '{name}' is too large")
            # Read with its own type, because HDF5 cannot convert UTF-8 to the type of NumPy's strings.
            found, read_as = np.zeros(shape, f"S{width}"), kind
        elif group in (h5t.INTEGER, h5t.FLOAT) and width <= 8:
            # HDF5 clips an integer that does not fit.
            dtype: np.dtype[Any] = _NUMBER if group == h5t.INTEGER else _FLOAT
            found, read_as = np.zeros(shape, dtype), memory_type(dtype)
        else:
            raise self.fault(f"attribute '{name}' holds {type_title(kind)}; expected numbers or texts")
        attribute.read(found, read_as)
        return found

    def _variable_texts(self, name: str, shape: tuple[int, ...]) -> Array:
        plan, header = self._origin.handle.get_create_plist(), h5o.get_info(self._id).addr
        where = self._origin.descriptor, plan.get_userblock(), plan.get_sizes(), header
        try:
            texts = read_texts(*where, name.encode(), MAX_TEXT)
        except UnreadableTexts as error:
            raise self.fault(f"attribute '{name}' cannot be read: {error}") from error
        if len(texts) != math.prod(shape):
            raise self.fault(f"attribute '{name}' has {len(texts)} texts, not {math.prod(shape)}")
        return np.array(texts, object).reshape(shape)

    def _where(self) -> str:
        return f" in '{self.name}'" if self.name else ""

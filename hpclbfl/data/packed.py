"""The packed format: a whole image set in one HDF5 file.

Root attributes `classes` (names, in label order) and, of all but older files, `fingerprint`; per split a
group with
    encoded  uint8 [bytes]   the image files' bytes, back to back
    offsets  int64 [N + 1]   where each image begins in `encoded`; the last one is its length
    labels   int64 [N]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from hpclbfl.core.errors import DataError
from hpclbfl.core.h5file import Group, H5File
from hpclbfl.core.h5library import INTEGERS, fixed_text
from hpclbfl.core.h5object import DamagedFile
from hpclbfl.core.h5write import new_h5file

IntArray = NDArray[np.int64]

_CHUNK_BYTES = 64 * 1024
_READ_AHEAD_BYTES = 1024 * 1024
_WRITE_BLOCK_BYTES = 4 * 1024 * 1024
_FINGERPRINT_IMAGES = 64
_MAX_CLASSES = 100_000
_AGAIN = "pack it again"


class Content(Protocol):
    """What a fingerprint reads of a split."""

    @property
    def labels(self) -> IntArray:
        """int64 [N]."""

    def sizes(self) -> IntArray:
        """Length of each image's content, bytes, int64 [N]."""

    def content(self, index: int) -> bytes:
        """The part of an image that a fingerprint covers."""


def fingerprint(classes: Sequence[str], splits: Mapping[str, Content]) -> str:
    """Identify a set by its content: 64 hexadecimal digits, independent of where and how it is stored.

    Covers the classes, every label and size, and the bytes of up to 64 evenly spaced images of each split.
    """
    digest = hashlib.sha256("\0".join(classes).encode())
    for name in sorted(splits):
        split = splits[name]
        count = len(split.labels)
        digest.update(f"\0{name}\0{count}\0".encode())
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(split.sizes(), dtype="<i8").tobytes())
        for index in evenly_spaced(count, _FINGERPRINT_IMAGES):
            digest.update(split.content(int(index)))
    return digest.hexdigest()


def evenly_spaced(count: int, at_most: int) -> IntArray:
    """Up to `at_most` of the indices below `count`, spread evenly."""
    chosen = min(count, at_most)
    return np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)


class PackedSplit:
    """One split of a packed file: labels in memory, image bytes read when asked for."""

    def __init__(self, group: Group, num_classes: int) -> None:
        self.path, self.name = group.path, group.name
        self._encoded = group.dataset("encoded", np.dtype(np.uint8))
        self._offsets: IntArray = group.dataset("offsets", INTEGERS).read()
        self.labels: IntArray = group.dataset("labels", INTEGERS).read()
        self._block: tuple[int, bytes] = (0, b"")
        self._check(num_classes)

    def _check(self, num_classes: int) -> None:
        offsets, labels, total = self._offsets, self.labels, len(self._encoded)
        where = f"{self.path}: split '{self.name}'"
        if len(offsets) != len(labels) + 1:
            raise DataError(f"{where} is torn: {len(offsets)} offsets for {len(labels)} labels, one more is right")
        if offsets[0] != 0 or np.any(offsets[1:] <= offsets[:-1]):
            raise DataError(f"{where} is torn: its offsets do not rise from 0")
        if offsets[-1] != total:
            raise DataError(f"{where} is torn: offsets end at {offsets[-1]}, but it holds {total} bytes of images")
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            raise DataError(
                f"{where} has labels from {labels.min()} to {labels.max()}, but the file names {num_classes} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Where an image lies, for error messages."""
        return f"{self.path}: {self.name} image {index}"

    def sizes(self) -> IntArray:
        """Length of each image file, bytes, int64 [N]."""
        sizes: IntArray = np.diff(self._offsets)
        return sizes

    def encoded(self, index: int) -> bytes:
        """The image file's bytes.

        Raises:
            DataError: the file can no longer be read.
        """
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        block_begin, block = self._block
        if not block_begin <= begin <= end <= block_begin + len(block):
            # Reading on pays when images are asked for in order (the set is decoded into memory), and only then.
            in_order = begin == block_begin + len(block) or block_begin <= begin < block_begin + len(block) < end
            stop = max(end, min(begin + _READ_AHEAD_BYTES, len(self._encoded))) if in_order else end
            try:
                block_begin, block = begin, self._encoded.rows(begin, stop).tobytes()
            except DamagedFile as error:
                raise DataError(f"{self.describe(index)}: {error.reason}: {_AGAIN}") from error
            self._block = (block_begin, block)
        return block[begin - block_begin : end - block_begin]

    content = encoded


class PackedFile:
    """A packed file, open for reading. A context manager; splits read from it while it is open.

    Raises:
        DataError: the file is missing, is not a packed file, or is torn.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file: give data.path a packed file (hpclbfl data pack makes one)")
        try:
            self._file = H5File(self.path)
            try:
                self.classes, self.splits = self._read()
                self.noted = self._file.text("fingerprint") if self._file.has("fingerprint") else None
                """The fingerprint that it was written with; None in files of older versions."""
            except DataError:
                self.close()
                raise
        except DamagedFile as error:
            raise DataError(f"{error}: {_AGAIN}") from error

    def _read(self) -> tuple[tuple[str, ...], dict[str, PackedSplit]]:
        if not self._file.has("classes"):
            raise DataError(f"{self.path}: not a packed file: it has no attribute 'classes'")
        classes = self._file.texts("classes", _MAX_CLASSES)
        groups = {name: group for name in self._file.names() if (group := self._file.group(name)) is not None}
        if not groups:
            raise DataError(f"{self.path}: not a packed file: it has no splits (train, test)")
        return classes, {name: PackedSplit(group, len(classes)) for name, group in groups.items()}

    def check(self, found: str) -> None:
        """Compare the set's fingerprint with the one in the file.

        Raises:
            DataError: they differ: labels, sizes or images are not those that were packed.
        """
        if self.noted is not None and self.noted != found:
            raise DataError(f"{self.path}: is damaged: its content does not have its fingerprint: {_AGAIN}")

    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.classes, self.splits)

    def close(self) -> None:
        """Close the file; its splits keep their labels but can read no image."""
        self._file.close()

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_packed(path: Path | str, classes: Sequence[str], splits: Mapping[str, Iterable[tuple[bytes, int]]]) -> None:
    """Write a packed file atomically from streams of (image file's bytes, label).

    Raises:
        DataError: an image is empty, or a label is out of range.
        EnvironmentFault: the file cannot be written.
    """
    with new_h5file(Path(path)) as file:
        names = [name.encode() for name in classes]
        file.attrs["classes"] = np.array(names, h5py.string_dtype(length=max(map(len, names), default=1) or 1))
        written = {}
        for split, images in splits.items():
            written[split] = _write_split(file.create_group(split), split, images, len(classes))
        file.attrs["fingerprint"] = fixed_text(fingerprint(classes, written))


class _Written:
    """A split of a file that is being written."""

    def __init__(self, encoded: Any, offsets: IntArray, labels: IntArray) -> None:
        self.labels = labels
        self.offsets = offsets
        self._encoded = encoded

    def sizes(self) -> IntArray:
        """Bytes of each image."""
        return np.diff(self.offsets)

    def content(self, index: int) -> bytes:
        """An image file's bytes."""
        content: bytes = self._encoded[self.offsets[index] : self.offsets[index + 1]].tobytes()
        return content


def _write_split(group: Any, name: str, images: Iterable[tuple[bytes, int]], num_classes: int) -> _Written:
    encoded = group.create_dataset("encoded", (0,), np.uint8, maxshape=(None,), chunks=(_CHUNK_BYTES,), fletcher32=True)
    offsets: list[int] = [0]
    labels: list[int] = []
    block = bytearray()

    def append() -> None:
        begin = encoded.shape[0]
        encoded.resize(begin + len(block), axis=0)
        encoded[begin:] = np.frombuffer(bytes(block), dtype=np.uint8)
        block.clear()

    for data, label in images:
        if not data:
            raise DataError(f"{name} image {len(labels)}: empty, no image file")
        if not 0 <= label < num_classes:
            raise DataError(f"{name} image {len(labels)}: label {label}, but there are {num_classes} classes")
        block += data
        offsets.append(offsets[-1] + len(data))
        labels.append(label)
        if len(block) >= _WRITE_BLOCK_BYTES:
            append()
    append()
    found = _Written(encoded, np.asarray(offsets, dtype=np.int64), np.asarray(labels, dtype=np.int64))
    for name, values in (("offsets", found.offsets), ("labels", found.labels)):
        # While it is open: failures after it is released are not raised.
        group.create_dataset(name, data=values).flush()
    return found

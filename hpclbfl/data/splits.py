"""A split: labels, and images that are decoded when asked for, whatever they lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpclbfl.core.errors import DataError
from hpclbfl.core.files import read_bytes
from hpclbfl.data.images import decode, encode_png
from hpclbfl.data.packed import IntArray, PackedSplit, fingerprint

_MAX_FILE_BYTES = 1 << 30


class Source(Protocol):
    """Where images lie: a packed file, image files, or an array."""

    def describe(self, index: int) -> str:
        """Where an image lies, for error messages."""

    def image(self, index: int) -> Image.Image:
        """The image, decoded, in mode RGB."""

    def encoded(self, index: int) -> bytes:
        """The image as the bytes of a file."""

    def content(self, index: int) -> bytes:
        """What a fingerprint covers; not subject to a codec's version."""

    def sizes(self, indices: IntArray) -> IntArray:
        """Lengths of `content`, bytes."""


class PackedImages:
    """A split of a packed file as a source."""

    def __init__(self, split: PackedSplit) -> None:
        self._split = split
        self.describe = split.describe
        self.encoded = split.encoded
        self.content = split.encoded

    def image(self, index: int) -> Image.Image:
        """Decoded, RGB."""
        return decode(self._split.encoded(index), self._split.describe(index))

    def sizes(self, indices: IntArray) -> IntArray:
        """Bytes of each."""
        return self._split.sizes()[indices]


class FileImages:
    """Image files of a folder."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def describe(self, index: int) -> str:
        """The file."""
        return str(self._files[index])

    def image(self, index: int) -> Image.Image:
        """Decoded, RGB."""
        return decode(self.encoded(index), self.describe(index))

    def encoded(self, index: int) -> bytes:
        """As the bytes of a file."""
        path = self._files[index]
        try:
            return read_bytes(path, _MAX_FILE_BYTES)
        except FileNotFoundError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def content(self, index: int) -> bytes:
        """The file's bytes."""
        return self.encoded(index)

    def sizes(self, indices: IntArray) -> IntArray:
        """Bytes of each."""
        try:
            return np.array([self._files[i].stat().st_size for i in indices], dtype=np.int64)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


class ArrayImages:
    """Pixels that a set keeps as one array, uint8 [N, H, W, 3]."""

    def __init__(self, pixels: NDArray[np.uint8], name: str) -> None:
        self._pixels, self._name = pixels, name

    def describe(self, index: int) -> str:
        """The set and the place in it."""
        return f"{self._name}: image {index}"

    def image(self, index: int) -> Image.Image:
        """Decoded, RGB."""
        return Image.fromarray(self._pixels[index])

    def encoded(self, index: int) -> bytes:
        """As a PNG file."""
        return encode_png(self.image(index))

    def content(self, index: int) -> bytes:
        """The raw pixels."""
        pixels: bytes = self._pixels[index].tobytes()
        return pixels

    def sizes(self, indices: IntArray) -> IntArray:
        """Bytes of each."""
        return np.full(len(indices), self._pixels[0].nbytes, dtype=np.int64)


@dataclass(frozen=True)
class Split:
    """Images of a source with their labels, in a fixed order."""

    source: Source
    labels: IntArray
    """int64 [N]"""
    indices: IntArray
    """int64 [N]: where each image stands in the source."""

    groups: ClassVar[None] = None
    """Images are nobody's."""

    @classmethod
    def of(cls, source: Source, labels: Sequence[int] | IntArray) -> Split:
        """All images of a source."""
        return cls(source, np.asarray(labels, dtype=np.int64), np.arange(len(labels), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image, RGB.

        Raises:
            DataError: the image cannot be read; names its file.
        """
        return self.source.image(int(self.indices[index]))

    def encoded(self, index: int) -> bytes:
        """One image as the bytes of a file: the original's where there is a file, else PNG."""
        return self.source.encoded(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        """What a fingerprint covers of one image."""
        return self.source.content(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """Where an image lies, for error messages."""
        return self.source.describe(int(self.indices[index]))

    def sizes(self) -> IntArray:
        """Length of each image's content, bytes, int64 [N]."""
        return self.source.sizes(self.indices)

    def subset(self, indices: IntArray) -> Split:
        """The images at these places, in this order."""
        return Split(self.source, self.labels[indices], self.indices[indices])

    @staticmethod
    def fingerprint(classes: tuple[str, ...], splits: Mapping[str, Any]) -> str:
        """See `Samples`: that of a packed file with these images."""
        return fingerprint(classes, splits)

"""Splits of a data set of the user's own: arrays, or batches that are made when they are asked for.

Whole numbers stay what they are, so that tokens can index an embedding; floating-point numbers become the job's type.
What a class of the user's may get wrong is told in one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpclbfl.core.errors import DataError, HpclbflError
from hpclbfl.core.text import MAX_SHOWN, printable
from hpclbfl.data.packed import IntArray

_TYPES = frozenset(
    (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
)


@dataclass(frozen=True)
class Examples:
    """A split as arrays, NumPy's or torch's."""

    inputs: Any
    """[N, ...] of any shape."""
    targets: Any
    """[N, ...] of any shape."""
    labels: Any = None
    """Class of each sample, for partitions, whole numbers [N]."""
    groups: Any = None
    """Whose each sample is, whole numbers [N]."""


@dataclass(frozen=True)
class ArraySplit:
    """A split that is there as a whole."""

    inputs: Tensor
    targets: Tensor
    labels: IntArray | None
    groups: IntArray | None

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices: IntArray) -> ArraySplit:
        """See `Samples`."""
        places = torch.from_numpy(indices)
        return ArraySplit(self.inputs[places], self.targets[places], *_picked(self, indices))

    def batch(self, samples: IntArray, passes: IntArray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these samples, on the host, in their own types."""
        places = torch.from_numpy(np.ascontiguousarray(samples, np.int64))
        return self.inputs[places], self.targets[places]

    def digest(self) -> bytes:
        """Of its content, SHA-256."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        _add_marks(digest, self)
        return digest.digest()

    @staticmethod
    def fingerprint(classes: tuple[str, ...], splits: Mapping[str, Any]) -> str:
        """See `Samples`."""
        return _fingerprint(classes, splits)


@dataclass(frozen=True)
class MadeSplit:
    """A split whose batches are made when they are asked for."""

    source: Any
    """The user's object."""
    where: str
    """Begins the line of an error."""
    name: str
    """What names the whole split's content: its `fingerprint`."""
    places: IntArray
    """[N] of each sample in the user's object."""
    labels: IntArray | None
    groups: IntArray | None
    like: tuple[Tensor, Tensor] | None = None
    """A batch, to which others are alike in shape and type."""

    def __len__(self) -> int:
        return len(self.places)

    def subset(self, indices: IntArray) -> MadeSplit:
        """See `Samples`."""
        labels, groups = _picked(self, indices)
        return replace(self, places=self.places[indices], labels=labels, groups=groups)

    def batch(self, samples: IntArray, passes: IntArray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these samples, on the host, in their own types.

        Raises:
            DataError: the user's `batch` fails, or gives something else.
        """
        with blaming(f"{self.where}: batch"):
            made = self.source.batch(self.places[samples], np.array(passes, np.int64))
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise DataError(f"{self.where}: batch gives {_kind(made)}, not (inputs, targets)")
        found = tuple(as_tensor(value, f"{self.where}: {name}") for name, value in zip(_NAMES, made, strict=True))
        for number, (name, tensor) in enumerate(zip(_NAMES, found, strict=True)):
            if len(tensor) != len(samples):
                raise DataError(f"{self.where}: batch gives {len(tensor)} {name} for {len(samples)} samples")
            like = tensor if self.like is None else self.like[number]
            if tensor.shape[1:] != like.shape[1:] or tensor.dtype != like.dtype:
                raise DataError(
                    f"{self.where}: batch gives {name} of {shape_text(tensor)} where others had {shape_text(like)}"
                )
        return found[0], found[1]

    def digest(self) -> bytes:
        """Of its name and size, SHA-256."""
        digest = hashlib.sha256(json.dumps([self.name, len(self)]).encode())
        _add_marks(digest, self)
        return digest.digest()

    @staticmethod
    def fingerprint(classes: tuple[str, ...], splits: Mapping[str, Any]) -> str:
        """See `Samples`."""
        return _fingerprint(classes, splits)


_NAMES = ("inputs", "targets")


def as_tensor(value: Any, where: str) -> Tensor:
    """An array of the user's as a tensor on the host; shares its memory where it can.

    Raises:
        DataError: it is no array, or of a type or shape that nothing is trained on; begins with `where`.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise DataError(f"{where} have the type {printable(value.dtype, MAX_SHOWN)}, {_RIGHT}")
        array = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        try:
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        except TypeError as error:
            raise DataError(f"{where} have the type {value.dtype}, {_RIGHT}") from error
        # `ascontiguousarray` makes a number an array of one.
        tensor = tensor.reshape(value.shape)
    elif isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise DataError(f"{where} are a tensor without plain values: give a dense one")
        tensor = value.detach().cpu().contiguous()
    else:
        raise DataError(f"{where} are {_kind(value)}, not an array of NumPy or torch")
    if tensor.dtype not in _TYPES:
        raise DataError(f"{where} have the type {type_text(tensor)}, {_RIGHT}")
    if tensor.dim() == 0 or 0 in tensor.shape[1:]:
        raise DataError(f"{where} have the shape {list(tensor.shape)}, not [N, ...] with all sizes above 0")
    return tensor


_RIGHT = "right are bool, uint8, signed whole numbers and floating point"


def type_text(tensor: Tensor) -> str:
    """`int64`."""
    return str(tensor.dtype).removeprefix("torch.")


def shape_text(tensor: Tensor) -> str:
    """Shape of a sample and its type: `[20] int64`."""
    return f"{list(tensor.shape[1:])} {type_text(tensor)}"


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Tell what the user's code raises in one line that begins with `where`. Raises DataError."""
    try:
        yield
    except (HpclbflError, MemoryError):
        raise
    except Exception as error:
        told = printable(f"{type(error).__name__}: {error}", MAX_SHOWN)
        raise DataError(f"{where} fails: {told}") from error


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {printable(type(value).__name__)}"


def _picked(split: ArraySplit | MadeSplit, indices: IntArray) -> tuple[IntArray | None, IntArray | None]:
    labels, groups = (None if marks is None else marks[indices] for marks in (split.labels, split.groups))
    return labels, groups


def _add_marks(digest: Any, split: ArraySplit | MadeSplit) -> None:
    for marks in (split.labels, split.groups):
        digest.update(b"none" if marks is None else marks.astype("<i8").tobytes())


def _fingerprint(classes: tuple[str, ...], splits: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for name, split in splits.items():
        digest.update(name.encode() + split.digest())
    return digest.hexdigest()

"""A data set of the user's own as one of the package's: checked once, with one line about what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hpclbfl.config.sections import DataConfig
from hpclbfl.core.errors import DataError
from hpclbfl.core.text import printable, shown
from hpclbfl.data.examples import ArraySplit, MadeSplit, as_tensor, blaming, shape_text
from hpclbfl.data.packed import IntArray

Split = ArraySplit | MadeSplit
_ABSENT = object()


def read_own(made: Any, config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    """Names of the classes, train and test of what the user's class was made into; see `hpclbfl.data.sets`.

    Raises:
        DataError: an attribute is missing, or of another type, size or shape.
    """
    title = config.title
    classes = _classes(_attribute(made, "classes", title), title)
    train, test = (_split(made, name, classes, f"{title}: {name}") for name in ("train", "test"))
    if len(train) and len(test):
        _check_alike(train, test, title)
    if (train.labels is None) != (test.labels is None):
        raise DataError(f"{title}: one of train and test has labels, the other has none")
    return classes, train, test


def _split(made: Any, name: str, classes: tuple[str, ...], where: str) -> Split:
    found = _attribute(made, name, where.rpartition(":")[0])
    if found is _ABSENT or found is None:
        raise DataError(f"{where.rpartition(':')[0]}: has no '{name}': a set has train and test")
    inputs, targets = (_attribute(found, key, where) for key in ("inputs", "targets"))
    if inputs is not _ABSENT and targets is not _ABSENT:
        return _arrays(found, inputs, targets, classes, where)
    if callable(_attribute(found, "batch", where)) and hasattr(type(found), "__len__"):
        return _made(found, classes, where)
    raise DataError(
        f"{where}: has neither 'inputs' and 'targets' nor a length and 'batch': see hpclbfl.data.examples.Examples"
    )


def _arrays(found: Any, inputs: Any, targets: Any, classes: tuple[str, ...], where: str) -> Split:
    x, y = as_tensor(inputs, f"{where}: inputs"), as_tensor(targets, f"{where}: targets")
    if len(x) != len(y):
        raise DataError(f"{where}: has {len(x)} inputs and {len(y)} targets")
    labels = _marks(found, "labels", len(x), where)
    if labels is None and classes and y.dim() == 1 and not y.is_floating_point():
        labels = y.to(torch.int64).numpy()
    _check_labels(labels, classes, where)
    return ArraySplit(x, y, labels, _marks(found, "groups", len(x), where))


def _made(found: Any, classes: tuple[str, ...], where: str) -> Split:
    with blaming(f"{where}: its length"):
        count = len(found)
    name = _attribute(found, "fingerprint", where)
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{where}: has no 'fingerprint': batches that are made when they are asked for need a text that names what "
            "they hold, so that a run is not continued on other data"
        )
    labels = _marks(found, "labels", count, where)
    _check_labels(labels, classes, where)
    places = np.arange(count, dtype=np.int64)
    split = MadeSplit(found, where, name, places, labels, _marks(found, "groups", count, where))
    return replace(split, like=split.batch(places[:1], places[:1])) if count else split


def _check_alike(train: Split, test: Split, title: str) -> None:
    """Refuse splits whose samples differ in shape or type. Raises DataError."""
    first = np.zeros(1, np.int64)
    for name, one, other in zip(("inputs", "targets"), *(s.batch(first, first) for s in (train, test)), strict=True):
        if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
            raise DataError(f"{title}: train has {name} of {shape_text(one)}, test of {shape_text(other)}")


def _attribute(found: Any, name: str, where: str) -> Any:
    with blaming(f"{where}: {name}"):
        return getattr(found, name, _ABSENT)


def _classes(found: Any, where: str) -> tuple[str, ...]:
    if found is _ABSENT or found is None:
        return ()
    if not isinstance(found, tuple | list) or not found or not all(isinstance(name, str) for name in found):
        raise DataError(f"{where}: classes are {shown(found)}, not a list of names")
    return tuple(found)


def _marks(found: Any, name: str, count: int, where: str) -> IntArray | None:
    """Labels or groups, one whole number for each sample."""
    values = _attribute(found, name, where)
    if values is _ABSENT or values is None:
        return None
    tensor = as_tensor(values, f"{where}: {name}")
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool or len(tensor) != count:
        raise DataError(
            f"{where}: {name} have the shape {list(tensor.shape)} and the type {printable(tensor.dtype)}, not a whole "
            f"number for each of {count} samples"
        )
    return tensor.to(torch.int64).numpy()


def _check_labels(labels: IntArray | None, classes: tuple[str, ...], where: str) -> None:
    if labels is None or not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes and high >= len(classes)):
        wrong = low if low < 0 else high
        right = f"0 to {len(classes) - 1}" if classes else "whole numbers from 0 up"
        raise DataError(f"{where}: has the label {wrong}, right are {right}")

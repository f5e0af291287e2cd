"""Small HDF5 files of tables, plan.h5 and sharpness.h5: written whole, each column with its unit and its meaning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpclbfl.errors import EnvironmentFault

Column = tuple[str, str, str, str]
"""Name, NumPy type, unit, meaning; the unit "1" is a plain number, "" a text."""


def row_type(columns: Sequence[Column]) -> np.dtype[Any]:
    """The type of a table's rows."""
    return np.dtype([(name, kind) for name, kind, _, _ in columns])


def describe(dataset: Any, columns: Iterable[tuple[str, str, str]]) -> None:
    """Note (name, unit, meaning) of each column in a dataset's attributes."""
    for name, unit, meaning in columns:
        dataset.attrs[f"unit.{name}"] = unit
        dataset.attrs[f"meaning.{name}"] = meaning


def save_tables(
    path: Path, tables: Mapping[str, tuple[NDArray[Any], Sequence[Column]]], attributes: Mapping[str, Any]
) -> None:
    """Write a file, whole or not at all.

    Args:
        tables: rows and columns, by name.
        attributes: of the file.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    import h5py

    unready = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(unready, "w") as file:
            for name, (rows, columns) in tables.items():
                dataset = file.create_dataset(name, data=rows)
                describe(dataset, ((column, unit, meaning) for column, _, unit, meaning in columns))
            for key, value in attributes.items():
                file.attrs[key] = value
        unready.replace(path)
    except OSError as error:
        with suppress(OSError):
            unready.unlink(missing_ok=True)
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from error

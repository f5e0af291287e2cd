"""Small HDF5 files of tables (plan.h5, sharpness.h5), written atomically; each column has a unit and a meaning.

The root attribute `checksum` is the SHA-256 of all tables and of the other root attributes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpclbfl.core.files import explained_writes
from hpclbfl.core.h5file import H5File
from hpclbfl.core.h5library import fixed_text, plain_text
from hpclbfl.core.h5write import new_h5file

Column = tuple[str, str, str, str]
"""Name, NumPy type, unit and meaning; the unit "1" is a plain number, "" a text."""
Attributes = dict[str, int | float | str]

_SEAL = "checksum"


def row_type(columns: Sequence[Column]) -> np.dtype[Any]:
    """The type of a table's rows."""
    return np.dtype([(name, kind) for name, kind, _, _ in columns])


def describe(dataset: Any, columns: Sequence[Column]) -> None:
    """Write the unit and meaning of each column to a dataset's attributes."""
    for name, _, unit, meaning in columns:
        dataset.attrs[f"unit.{name}"] = unit
        dataset.attrs[f"meaning.{name}"] = meaning


def save_tables(
    path: Path, tables: Mapping[str, tuple[NDArray[Any], Sequence[Column]]], attributes: Attributes
) -> None:
    """Write a file atomically; creates its folder.

    Args:
        path: the file.
        tables: rows and columns, by name.
        attributes: root attributes of the file.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    attributes = {key: plain_text(value) if isinstance(value, str) else value for key, value in attributes.items()}
    with explained_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_h5file(path) as file:
        for name, (rows, columns) in tables.items():
            describe(file.create_dataset(name, data=rows), columns)
        seal = _checksum({name: rows for name, (rows, _) in tables.items()}, attributes)
        for key, value in {**attributes, _SEAL: seal}.items():
            file.attrs[key] = fixed_text(value) if isinstance(value, str) else value


def read_tables(path: Path, types: Mapping[str, np.dtype[Any]]) -> tuple[dict[str, NDArray[Any]], Attributes]:
    """Read a file: its tables, which have these row types, and its root attributes.

    Raises:
        DamagedFile: it is missing, cannot be read, has other tables, or does not match its checksum.
    """
    with H5File(path) as file:
        attributes = file.attributes()
        seal = attributes.pop(_SEAL, None)
        tables = {name: file.dataset(name, dtype).read() for name, dtype in types.items()}
        # Files of older versions have no checksum.
        if seal is not None and seal != _checksum(tables, attributes):
            raise file.fault("is damaged: its content does not match its checksum")
    return tables, attributes


def _checksum(tables: Mapping[str, NDArray[Any]], attributes: Attributes) -> str:
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    for name in sorted(tables):
        rows = tables[name]
        digest.update(f"\0{name}\0{rows.dtype.descr}\0{len(rows)}\0".encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()

"""sharpness.h5 in a run's folder: eigenvalues by optimizer step, and the spectrum where it was asked for.

Read by the analysis; loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpclbfl.core.errors import DataError
from hpclbfl.core.h5file import H5File
from hpclbfl.core.h5object import DamagedFile
from hpclbfl.runs.log.schema import MAX_NUMBER
from hpclbfl.runs.log.tables import Column, read_tables, row_type, save_tables

FILE_NAME = "sharpness.h5"
SCHEMA_VERSION = 2
"""Root attribute `schema_version`; rises when a column changes its name, type or meaning."""

_INT, _FLOAT = "<i8", "<f8"
_STEP = ("step", _INT, "step", "optimizer steps that the net had taken")

COLUMNS: dict[str, list[Column]] = {
    "eigenvalues": [
        _STEP,
        ("index", _INT, "1", "place among the eigenvalues, from 0, the largest in magnitude first"),
        ("eigenvalue", _FLOAT, "nat", "of the Hessian of the mean training loss, with its sign"),
        ("residual", _FLOAT, "nat", "|Hv - eigenvalue v| of the unit vector v that it was found with"),
        ("iterations", _INT, "1", "Hessian-vector products that it took"),
        ("num_samples", _INT, "sample", "training samples that the loss is the mean of"),
        ("seed", _INT, "1", "chose the images and the start vectors"),
        ("has_settled", _INT, "1", "1: the residual is within the tolerance, 0: it is not, -1: not known"),
    ],
    "spectrum": [
        _STEP,
        ("vector", _INT, "1", "start vector, from 0"),
        ("index", _INT, "1", "place among the start vector's Ritz values, from 0, the smallest first"),
        ("eigenvalue", _FLOAT, "nat", "Ritz value (Lanczos)"),
        (
            "weight",
            _FLOAT,
            "1",
            "share of the spectrum, seen from its start vector; sums to 1 for each vector",
        ),
        ("residual", _FLOAT, "nat", "|Hy - eigenvalue y| of its Ritz vector y"),
    ],
    "weights": [
        _STEP,
        ("eigenvalue", _FLOAT, "nat", "mean of the Ritz values between low and high, by their weights"),
        ("low", _FLOAT, "nat", "where a part of the axis begins, residuals included, that no other part touches"),
        ("high", _FLOAT, "nat", "where it ends"),
        ("weight", _FLOAT, "1", "share of the spectrum that lies there, mean over start vectors; sums to 1"),
        ("error", _FLOAT, "1", "its standard error; NaN from one start vector"),
    ],
    "trace": [
        _STEP,
        ("trace", _FLOAT, "nat", "sum of all eigenvalues, mean over start vectors"),
        ("error", _FLOAT, "nat", "its standard error; NaN from one start vector"),
        ("vectors", _INT, "1", "start vectors"),
    ],
    "density": [
        _STEP,
        ("eigenvalue", _FLOAT, "nat", "point on the axis"),
        ("density", _FLOAT, "1/nat", "of eigenvalues there, mean over start vectors; integrates to 1"),
        ("error", _FLOAT, "1/nat", "its standard error; NaN from one start vector"),
    ],
}
DTYPES = {table: row_type(columns) for table, columns in COLUMNS.items()}
_ADDED: dict[str, dict[str, float]] = {
    "eigenvalues": {"has_settled": -1},
    "spectrum": {"vector": 0},
    "density": {"error": float("nan")},
}
"""Columns that version 1 lacks, and what they are in its files; of one start vector, without `weights` and `trace`."""
VERSION_1 = {
    table: row_type([column for column in COLUMNS[table] if column[0] not in added]) for table, added in _ADDED.items()
}
"""What the tables of its files hold."""

Tables = dict[str, NDArray[Any]]
"""By name: structured arrays of DTYPES."""


def empty_tables() -> Tables:
    """All tables, without rows."""
    return {table: np.zeros(0, dtype) for table, dtype in DTYPES.items()}


def rows_of(table: str, step: int, **columns: Any) -> NDArray[Any]:
    """Rows of a table for one step; columns are sequences of one length, or one value for all rows."""
    lengths = [np.size(values) for values in columns.values() if np.ndim(values)]
    rows = np.zeros(lengths[0] if lengths else 1, DTYPES[table])
    rows["step"] = step
    for name, values in columns.items():
        rows[name] = values
    return rows


def read_sharpness(path: Path) -> tuple[Tables, dict[str, Any]]:
    """The tables of a file, by step and index, and its root attributes.

    Raises:
        DataError: it cannot be read, is damaged, or is of another version.
    """
    again = "delete it and run 'hpclbfl sharpness' again"
    try:
        with H5File(path) as file:
            version = file.integer("schema_version")
        if not 1 <= version <= SCHEMA_VERSION:
            raise DataError(f"{path}: has version {version}, this program reads 1 to {SCHEMA_VERSION}; {again}")
        tables, attributes = read_tables(path, DTYPES if version == SCHEMA_VERSION else VERSION_1)
        tables = tables if version == SCHEMA_VERSION else _upgraded(tables)
    except DamagedFile as error:
        raise DataError(f"{error}; {again}") from error
    for name, rows in tables.items():
        if len(rows) and not 0 <= int(rows["step"].min()) <= int(rows["step"].max()) < MAX_NUMBER:
            raise DataError(f"{path}: '{name}' has steps below 0 or above {MAX_NUMBER - 1}; {again}")
    return tables, attributes


def _upgraded(old: Tables) -> Tables:
    """The tables of version 1 as this one has them."""
    tables = empty_tables()
    for name, rows in old.items():
        tables[name] = np.zeros(len(rows), DTYPES[name])
        for column in rows.dtype.names or ():
            tables[name][column] = rows[column]
        for column, value in _ADDED[name].items():
            tables[name][column] = value
    return tables


def save_sharpness(path: Path, new: Tables, step: int, attributes: dict[str, Any]) -> None:
    """Add a step's rows to a file, whole or not at all; all that it held of this step goes.

    Rows of another experiment (root attribute `hash`) go, too: the folder was used anew.

    Raises:
        DataError: what is there cannot be read.
        EnvironmentFault: it cannot be written.
    """
    old = empty_tables()
    if path.exists():
        found, known = read_sharpness(path)
        if known.get("hash") == attributes.get("hash"):
            old = {name: rows[rows["step"] != step] for name, rows in found.items()}
    tables = {}
    for name, columns in COLUMNS.items():
        rows = np.concatenate([old[name], new[name]])
        # Stable: the order within a step stays.
        tables[name] = rows[np.argsort(rows["step"], kind="stable")], columns
    save_tables(path, tables, {**attributes, "schema_version": SCHEMA_VERSION})

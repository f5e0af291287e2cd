"""sharpness.h5 in a run folder: eigenvalues by optimizer step, and spectra where requested.

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
"""Root attribute `schema_version`; increases when a column changes its name, type or meaning."""

# Every table also has a first column `step`. One column a line: name, type, unit, meaning.
_TABLES = {
    "eigenvalues": """
        index        int    1       place among the eigenvalues, from 0, the largest in magnitude first
        eigenvalue   float  nat     of the Hessian of the mean training loss, with its sign
        residual     float  nat     |Hv - eigenvalue v| of the unit vector v that it was found with
        iterations   int    1       Hessian-vector products that it took
        num_samples  int    sample  training samples that the loss is the mean of
        seed         int    1       chose the samples and the start vectors
        has_settled  int    1       1: the residual is within the tolerance, 0: it is not, -1: not known
    """,
    "spectrum": """
        vector       int    1       start vector, from 0
        index        int    1       place among the start vector's Ritz values, from 0, the smallest first
        eigenvalue   float  nat     Ritz value (Lanczos)
        weight       float  1       share of the spectrum, seen from its start vector; sums to 1 for each vector
        residual     float  nat     |Hy - eigenvalue y| of its Ritz vector y
    """,
    "weights": """
        eigenvalue   float  nat     mean of the Ritz values between low and high, by their weights
        low          float  nat     where a part of the axis begins, residuals included, that no other part touches
        high         float  nat     where it ends
        weight       float  1       share of the spectrum that lies there, mean over start vectors; sums to 1
        error        float  1       its standard error; NaN from one start vector
    """,
    "trace": """
        trace        float  nat     sum of all eigenvalues, mean over start vectors
        error        float  nat     its standard error; NaN from one start vector
        vectors      int    1       start vectors
    """,
    "density": """
        eigenvalue   float  nat     point on the axis
        density      float  1/nat   of eigenvalues there, mean over start vectors; integrates to 1
        error        float  1/nat   its standard error; NaN from one start vector
    """,
}


def _columns(table: str) -> list[Column]:
    kinds = {"int": "<i8", "float": "<f8"}
    rows = (line.split(maxsplit=3) for line in _TABLES[table].strip().splitlines())
    step = ("step", kinds["int"], "step", "optimizer steps that the net had taken")
    return [step, *((name, kinds[kind], unit, meaning) for name, kind, unit, meaning in rows)]


COLUMNS = {table: _columns(table) for table in _TABLES}
DTYPES = {table: row_type(columns) for table, columns in COLUMNS.items()}
_ADDED: dict[str, dict[str, float]] = {
    "eigenvalues": {"has_settled": -1},
    "spectrum": {"vector": 0},
    "density": {"error": float("nan")},
}
"""Columns that version 1 lacks, with their defaults; it has one start vector, and no `weights` and `trace`."""
VERSION_1 = {
    table: row_type([column for column in COLUMNS[table] if column[0] not in added]) for table, added in _ADDED.items()
}
"""Types of its tables."""

Tables = dict[str, NDArray[Any]]
"""By name: structured arrays of DTYPES."""


def empty_tables() -> Tables:
    """All tables without rows."""
    return {table: np.zeros(0, dtype) for table, dtype in DTYPES.items()}


def rows_of(table: str, step: int, **columns: Any) -> NDArray[Any]:
    """Rows of a table for one step; columns are sequences of equal length, or one value for all rows."""
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
    """Convert the tables of version 1."""
    tables = empty_tables()
    for name, rows in old.items():
        tables[name] = np.zeros(len(rows), DTYPES[name])
        for column in rows.dtype.names or ():
            tables[name][column] = rows[column]
        for column, value in _ADDED[name].items():
            tables[name][column] = value
    return tables


def save_sharpness(path: Path, new: Tables, step: int, attributes: dict[str, Any]) -> None:
    """Replace a step's rows in a file, atomically. Rows of another experiment (root attribute `hash`) are removed.

    Raises:
        DataError: the existing file cannot be read.
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
        # Stable: keeps the order within a step.
        tables[name] = rows[np.argsort(rows["step"], kind="stable")], columns
    save_tables(path, tables, {**attributes, "schema_version": SCHEMA_VERSION})

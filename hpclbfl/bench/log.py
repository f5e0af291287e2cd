"""`hpclbfl bench log`: what a step's row in the HDF5 log costs, flushes included."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.turns import Turns
from hpclbfl.runs.log.schema import DTYPES
from hpclbfl.runs.log.writer import BLOCK_ROWS, RunLog

VARIANTS = {
    "blocks": f"ours, blocks of {BLOCK_ROWS} rows",
    "rows": "one compound row at a time, flushed",
    "columns": "one dataset per column, row by row, flushed",
}
_TABLE = "steps"
_DTYPE = DTYPES[_TABLE]
_COLUMNS = _DTYPE.names or ()
_SHARE = {"blocks": 1.0, "rows": 0.1, "columns": 0.02}
"""Of the rows, written in a round: the slow ones need not many."""
_CHUNK_ROWS = 200

Write = Callable[[Path, int], float]


@dataclass(frozen=True)
class Settings:
    """What can be chosen."""

    rounds: int = 15
    rows: int = 10_000
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants in this process, into files of a temporary folder."""
    findings = Findings(f"A row of {len(_COLUMNS)} columns in the HDF5 log", VARIANTS)
    findings.extra["hdf5"] = h5py.version.hdf5_version
    writers: dict[str, Write] = {"blocks": _blocks, "rows": _rows, "columns": _columns}
    with tempfile.TemporaryDirectory(prefix="hpclbfl-bench-") as folder:
        path = Path(folder, "log.h5")
        counts = {name: max(BLOCK_ROWS, int(_SHARE[name] * settings.rows)) for name in settings.variants}
        for variant in settings.variants:
            writers[variant](path, BLOCK_ROWS)
            path.unlink()
        for _, variant in turns(settings.variants, settings.rounds):
            seconds = writers[variant](path, counts[variant])
            path.unlink()
            findings.add("row", variant, "us", [1e6 * seconds / counts[variant]])
    findings.sort(list(VARIANTS))
    for against in ("rows", "columns"):
        findings.compare("row", "blocks", against)
    return findings


def _row(step: int) -> tuple[Any, ...]:
    """A row as training makes it: integers count, floats were measured."""
    return tuple(step if _DTYPE[name].kind == "i" else math.sqrt(step + 1) for name in _COLUMNS)


def _blocks(path: Path, count: int) -> float:
    """The product's log; seconds for `count` rows that outlive the process."""
    rows = [_row(step) for step in range(count)]
    with RunLog(path, {}) as log:
        begin = time.perf_counter()
        for row in rows:
            log.append_row(_TABLE, row)
        log.flush()
        return time.perf_counter() - begin


def _rows(path: Path, count: int) -> float:
    """One table, through h5py's usual calls."""
    rows = [np.array(_row(step), _DTYPE) for step in range(count)]
    with h5py.File(path, "w") as file:
        table = file.create_dataset(_TABLE, (0,), _DTYPE, maxshape=(None,), chunks=(_CHUNK_ROWS,))
        begin = time.perf_counter()
        for step, row in enumerate(rows):
            table.resize((step + 1,))
            table[step] = row
            table.flush()
        return time.perf_counter() - begin


def _columns(path: Path, count: int) -> float:
    """A dataset per column, through h5py's usual calls."""
    rows = [_row(step) for step in range(count)]
    with h5py.File(path, "w") as file:
        columns = [
            file.create_dataset(name, (0,), _DTYPE[name], maxshape=(None,), chunks=(_CHUNK_ROWS,)) for name in _COLUMNS
        ]
        begin = time.perf_counter()
        for step, row in enumerate(rows):
            for column, value in zip(columns, row, strict=True):
                column.resize((step + 1,))
                column[step] = value
            file.flush()
        return time.perf_counter() - begin

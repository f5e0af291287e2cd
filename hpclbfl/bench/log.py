"""`hpclbfl bench log`: the cost of a step's row in the HDF5 log, including flushes."""

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
"""Share of the rows that a variant writes in a round: fewer for the slow ones."""
_CHUNK_ROWS = 200


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 15
    rows: int = 10_000
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants in this process, with files in a temporary folder."""
    findings = Findings(f"A row of {len(_COLUMNS)} columns in the HDF5 log", VARIANTS)
    findings.extra["hdf5"] = h5py.version.hdf5_version
    writers: dict[str, Callable[[Path, int], float]] = {"blocks": _blocks, "rows": _rows, "columns": _columns}
    with tempfile.TemporaryDirectory(prefix="hpclbfl-bench-") as folder:
        path = Path(folder, "log.h5")
        for variant in settings.variants:
            writers[variant](path, BLOCK_ROWS)
        for _, variant in turns(settings.variants, settings.rounds):
            count = max(BLOCK_ROWS, int(_SHARE[variant] * settings.rows))
            findings.add("row", variant, "us", [1e6 * writers[variant](path, count) / count])
    findings.sort(list(VARIANTS))
    for against in ("rows", "columns"):
        findings.compare("row", "blocks", against)
    return findings


def _row(step: int) -> tuple[Any, ...]:
    """A row like those of training: integers count up, floats have all their digits."""
    return tuple(step if _DTYPE[name].kind == "i" else math.sqrt(step + 1) for name in _COLUMNS)


def _blocks(path: Path, count: int) -> float:
    """Our log; seconds until `count` rows are flushed."""
    path.unlink(missing_ok=True)
    rows = [_row(step) for step in range(count)]
    with RunLog(path, {}) as log:
        begin = time.perf_counter()
        for row in rows:
            log.append_row(_TABLE, row)
        log.flush()
        return time.perf_counter() - begin


def _rows(path: Path, count: int) -> float:
    """One table, written through h5py's usual calls."""
    with h5py.File(path, "w") as file:
        tables = [file.create_dataset(_TABLE, (0,), _DTYPE, maxshape=(None,), chunks=(_CHUNK_ROWS,))]
        return _written(file, tables, [(np.array(_row(step), _DTYPE),) for step in range(count)])


def _columns(path: Path, count: int) -> float:
    """A dataset per column, written through h5py's usual calls."""
    kinds = {"maxshape": (None,), "chunks": (_CHUNK_ROWS,)}
    with h5py.File(path, "w") as file:
        columns = [file.create_dataset(name, (0,), _DTYPE[name], **kinds) for name in _COLUMNS]
        return _written(file, columns, [_row(step) for step in range(count)])


def _written(file: h5py.File, datasets: list[h5py.Dataset], rows: list[tuple[Any, ...]]) -> float:
    """Append each row's values to the datasets and flush; seconds of all."""
    begin = time.perf_counter()
    for step, row in enumerate(rows):
        for dataset, value in zip(datasets, row, strict=True):
            dataset.resize((step + 1,))
            dataset[step] = value
        file.flush()
    return time.perf_counter() - begin

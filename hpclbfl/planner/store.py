"""plan.h5: every probe with its prediction, and the errors of the predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpclbfl.batching.cost_model import errors, medians, plain_line
from hpclbfl.runs.log.tables import row_type, save_tables

Role = Literal["fit", "held_out", "failed"]

_PAGES_BYTES = 2**16
"""Memory is allocated in whole pages: differences below this say nothing about the images."""

# (column, type, unit, meaning)
COLUMNS = [
    ("model", "S32", "", "net"),
    ("data", "S64", "", "data set and what a sample is like"),
    ("quantity", "S16", "", "what was measured; see the unit in its name, s or bytes"),
    ("batch", "<i8", "sample", "local batch size; 0 for a reduction"),
    ("repetition", "<i8", "1", "from 0"),
    ("measured", "<f8", "s or byte", "as measured; NaN where the probe ran out of memory"),
    ("predicted", "<f8", "s or byte", "by the fit"),
    ("rank", "<i8", "1", "rank; -1 for all together"),
    ("role", "S8", "", "fit, held_out (not seen by the fit) or failed"),
    ("size_bytes", "<i8", "byte", "size of a reduction; 0 otherwise"),
]
DTYPE = row_type(COLUMNS)


@dataclass(frozen=True)
class ProbeRow:
    """One repetition of one probe."""

    quantity: str
    """t_c_s, t_mov_s, t_local_s (both together), t_step_s, t_sync_s; m_act_bytes, m_batch_bytes, m_total_bytes."""
    batch: int
    repetition: int
    measured: float
    predicted: float
    role: Role
    rank: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class Errors:
    """Relative errors of a quantity's predictions: of the median of each held-out batch size (or message size)."""

    quantity: str
    median: float
    worst: float
    num_sizes: int


def prediction_errors(rows: Iterable[ProbeRow]) -> list[Errors]:
    """Errors by quantity over all ranks, from held-out probes only."""
    groups: dict[str, dict[tuple[int, int, int], list[ProbeRow]]] = {}
    for row in rows:
        if row.role == "held_out":
            sizes = groups.setdefault(row.quantity, {})
            sizes.setdefault((row.rank, row.batch, row.size_bytes), []).append(row)
    found = []
    for quantity, sizes in groups.items():
        relative = []
        for repetitions in sizes.values():
            measured = float(np.median([row.measured for row in repetitions]))
            relative.append(abs(repetitions[0].predicted - measured) / measured if measured else 0.0)
        found.append(Errors(quantity, float(np.median(relative)), max(relative), len(relative)))
    return found


def errors_above(tolerated: float, rows: Iterable[ProbeRow]) -> tuple[str, ...]:
    """Each quantity whose worst held-out error is above `tolerated`, relative, with that error in per cent."""
    seen = [row for row in rows if row.quantity != "m_batch_bytes" or abs(row.predicted - row.measured) > _PAGES_BYTES]
    return tuple(f"{e.quantity} {100 * e.worst:.0f} %" for e in prediction_errors(seen) if not e.worst <= tolerated)


@dataclass(frozen=True)
class PlainErrors:
    """Relative errors of one plain line through the medians of all batch sizes, at these same sizes."""

    quantity: str
    least: float
    worst: float
    num_sizes: int


def plain_line_errors(rows: Sequence[ProbeRow]) -> list[PlainErrors]:
    """Errors of `plain_line` for t_c and M_batch, as the paper gives them for Fig. 5 and 4b; a line for each rank."""
    found = []
    for quantity in ("t_c_s", "m_batch_bytes"):
        relative: list[float] = []
        for rank in sorted({row.rank for row in rows}):
            points = medians((r.batch, r.measured) for r in rows if r.quantity == quantity and r.rank == rank)
            if len(points) > 2:
                relative += errors(plain_line(points), points)
        if relative:
            found.append(PlainErrors(quantity, min(relative), max(relative), len(relative)))
    return found


def save_probes(path: Path, rows: Sequence[ProbeRow], model: str, data: str, attributes: dict[str, Any]) -> None:
    """Write plan.h5, the table `probes`, atomically.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    table = np.zeros(len(rows), DTYPE)
    for place, row in enumerate(rows):
        numbers = (row.batch, row.repetition, row.measured, row.predicted, row.rank)
        table[place] = (model.encode(), data.encode(), row.quantity.encode(), *numbers, row.role, row.size_bytes)
    save_tables(path, {"probes": (table, COLUMNS)}, attributes)

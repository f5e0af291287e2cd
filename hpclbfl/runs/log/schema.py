"""Tables of a rank's log file: column names, types, units and meanings.

Conventions:
    - `step` counts optimizer steps from 0 over the whole run, across attempts; a run that resumes after n finished
      steps continues with step n (`resumed_from_step` = n).
    - A float that was not measured is NaN, never 0.
    - Texts have a fixed width (`S`), hold UTF-8 and are cut at that width.
    - No row is all zeros, so the reader can recognise a row of zeros as a hole in a torn file.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 3
"""Stands in each file's root attribute `schema_version`; rises when a column changes its name, type or meaning, or a
table is added."""

_INT, _FLOAT = "<i8", "<f8"

COLUMNS: dict[str, list[tuple[str, str, str, str]]] = {
    "steps": [
        ("step", _INT, "step", "optimizer step, from 0"),
        ("round", _INT, "round", "averaging period that the step belongs to, from 0"),
        ("epoch", _FLOAT, "epoch", "passes over the training set after this step: num_samples / its size"),
        ("client", _INT, "1", "client, from 0"),
        ("local_batch_size", _INT, "sample", "samples that this client processed in this step, the actual count"),
        ("num_samples", _INT, "sample", "samples that all clients processed so far, this step included"),
        ("loss", _FLOAT, "nat", "mean training loss over this client's batch"),
        ("lr", _FLOAT, "1", "learning rate of this step"),
        ("local_grad_sq_norm", _FLOAT, "1", "squared norm of this client's own gradient"),
        ("grad_sq_norm", _FLOAT, "1", "squared norm of the reduced gradient, before it is scaled"),
        ("grad_change", _FLOAT, "1", "relative gradient change (Eq. 8)"),
        ("scale", _FLOAT, "1", "factor that the gradient was multiplied with (Eq. 6)"),
        ("tr_sigma", _FLOAT, "1", "trace of the gradients' covariance over samples, estimated"),
        ("true_grad_sq_norm", _FLOAT, "1", "squared norm of the gradient without noise, estimated"),
        ("b_simple", _FLOAT, "sample", "simple noise scale: tr_sigma / true_grad_sq_norm"),
        ("t_data_s", _FLOAT, "s", "waiting for and copying the batch, host to device included"),
        ("t_compute_s", _FLOAT, "s", "forward and backward pass and the optimizer"),
        ("t_sync_s", _FLOAT, "s", "reducing gradients or averaging parameters: t_wait_s + t_transfer_s"),
        ("t_wait_s", _FLOAT, "s", "part of t_sync_s: waiting for slower ranks"),
        ("t_transfer_s", _FLOAT, "s", "part of t_sync_s: moving and summing"),
        ("t_step_s", _FLOAT, "s", "the step, whole: t_data_s + t_compute_s + t_sync_s (Eq. 2)"),
    ],
    "evals": [
        ("step", _INT, "step", "last optimizer step before the evaluation (-1: before any)"),
        ("epoch", _FLOAT, "epoch", "passes over the training set so far"),
        ("num_samples", _INT, "sample", "samples that all clients processed so far"),
        ("elapsed_s", _FLOAT, "s", "training time without evaluation and checkpoints, over all attempts"),
        ("split", "S16", "", "part of the data: test or train"),
        ("loss", _FLOAT, "nat", "mean loss over the split"),
        ("top1", _FLOAT, "1", "share of samples whose likeliest class is right, 0 to 1; NaN: they have no classes"),
        ("top5", _FLOAT, "1", "share of samples whose class is among the five likeliest, 0 to 1; NaN: no classes"),
    ],
    "layers": [
        ("step", _INT, "step", "optimizer step, from 0"),
        ("layer", "S128", "", "name of the parameter"),
        ("grad_sq_norm", _FLOAT, "1", "squared norm of this parameter's gradient"),
    ],
    "plans": [
        ("step", _INT, "step", "first optimizer step under this plan"),
        ("client", _INT, "1", "client, from 0"),
        ("local_batch_size", _INT, "sample", "samples per step that the client is to process"),
        ("reason", "S128", "", "why the plan was made"),
    ],
    "events": [
        ("step", _INT, "step", "optimizer step at which it happened"),
        ("kind", "S32", "", "what happened, one word"),
        ("text", "S256", "", "one line about it"),
    ],
    "metrics": [
        ("step", _INT, "step", "last optimizer step before it was measured (-1: before any)"),
        ("client", _INT, "1", "client, from 0; -1: of all together"),
        ("name", "S64", "", "what was measured; of an evaluation, its split and the metric"),
        ("value", _FLOAT, "1", "its value"),
    ],
}
"""Name, NumPy type, unit and meaning of each column; the unit "1" is a plain number, "" a text."""

TABLES: tuple[str, ...] = tuple(COLUMNS)
"""Names of the tables; the order of the counters in a file's dataset `committed`."""

TABLES_OF: dict[int, tuple[str, ...]] = {2: TABLES[: TABLES.index("metrics")], SCHEMA_VERSION: TABLES}
"""The same for each version of the schema that can be read."""

ALL = -1
"""In the column `client`: all clients together."""

DTYPES: dict[str, np.dtype[Any]] = {
    table: np.dtype([(name, kind) for name, kind, _, _ in columns]) for table, columns in COLUMNS.items()
}
"""Row type of every table, columns in the file's order, packed."""

UNITS = {table: {name: unit for name, _, unit, _ in columns} for table, columns in COLUMNS.items()}
MEANINGS = {table: {name: meaning for name, _, _, meaning in columns} for table, columns in COLUMNS.items()}

MAX_NUMBER = 2**53
"""Larger than any whole number in a log: steps, samples, clients."""

_LOWEST = {("evals", "step"): -1, ("metrics", "step"): -1, ("metrics", "client"): ALL}
"""Of a column; 0 of all others."""


@dataclass(frozen=True)
class LogAttributes:
    """Numbers among a log's root attributes, besides `schema_version`; HDF5's own checksums protect them."""

    rank: int = 0
    attempt: int = 0
    resumed_from_step: int = 0


@dataclass(frozen=True)
class LogTexts:
    """Texts among a log's root attributes; the attribute `texts_crc32` is their checksum."""

    config: str = ""
    """The resolved job, YAML."""
    provenance: str = ""
    """The attempt's provenance, JSON."""

    def checksum(self) -> int:
        """CRC-32 of both."""
        return zlib.crc32(f"{self.config}\0{self.provenance}".encode())


def find_wrong_number(table: str, rows: NDArray[Any]) -> str:
    """An impossible whole number, or steps out of order, in a table, as a message; empty if there are none."""
    if not len(rows):
        return ""
    for name, kind, _, _ in COLUMNS[table]:
        if kind != _INT:
            continue
        low = _LOWEST.get((table, name), 0)
        values = rows[name] - low if low else rows[name]
        # Seen as unsigned, a negative number is a huge one.
        if values.view(np.uint64).max() >= MAX_NUMBER:
            wrong = next(int(value) for value in rows[name] if not low <= value < MAX_NUMBER + low)
            return f"table '{table}' has {wrong} in column '{name}'; expected {low} to {MAX_NUMBER + low - 1}"
    if table == "steps" and (rows["step"][1:] < rows["step"][:-1]).any():
        return "the steps of table 'steps' are not in ascending order"
    return ""


def text_columns(table: str) -> dict[int, int]:
    """Width in bytes of each text column of a table, by its position."""
    return {place: int(kind[1:]) for place, (_, kind, _, _) in enumerate(COLUMNS[table]) if kind.startswith("S")}


def defaults(table: str) -> dict[str, Any]:
    """Values of the columns that need not be given: NaN for floats, empty for texts; integers have no default."""
    return {name: float("nan") if kind == _FLOAT else b"" for name, kind, _, _ in COLUMNS[table] if kind != _INT}


def fit_text(text: str | bytes, width: int) -> bytes:
    """A text as UTF-8, cut between characters to `width` bytes; a text that was cut ends with three dots."""
    raw = text.encode("utf-8", errors="replace") if isinstance(text, str) else bytes(text)
    raw = raw.replace(b"\0", b" ")
    if len(raw) <= width:
        return raw
    return raw[: width - 3].decode("utf-8", errors="ignore").encode() + b"..."

"""The frames that a folder of runs is loaded into: their columns, their rows, and their types."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hpclbfl.core.text import printable
from hpclbfl.runs.log.reader import Table
from hpclbfl.runs.log.schema import DTYPES

RUN_COLUMNS: dict[str, str] = {
    "run": "path of the run's folder, seen from the folder that was loaded: the key of every frame",
    "path": "path of the run's folder as it was found",
    "state": "done, running, failed, requeue, unknown (no status yet) or unreadable",
    "complete": "done, and no row of it is lost, so that it counts in means",
    "error": "why it failed, one line",
    "reason": "why training ended: epochs, steps, samples, seconds, top1",
    "hash": "of the experiment, ten hexadecimal digits",
    "num_attempts": "how often it was started",
    "num_ranks": "MPI processes of the last attempt",
    "num_test": "samples of the test split; null in runs of older versions",
    "message_bytes": "of a reduction, bytes, without compression; null in runs of older versions",
    "engine": "communication backend: horovod, mpi, local",
    "elapsed_s": "training time, seconds; null while it is not done",
    "time": "start of the last attempt, UTC",
    "host": "name of rank 0's machine",
    "device": "of rank 0: cpu, cuda:0",
    "cpu": "processor's model",
    "gpus": "names of GPUs, by comma",
    "platform": "operating system",
    "python": "version",
    "torch": "version",
    "horovod": "version",
    "mpi_library": "name and version",
    "hpclbfl": "version",
    "commit": "of the checkout, if it is one",
    "dirty": "whether the checkout had changes",
    "data_fingerprint": "hash of the data's content",
    "own_parts": "components of the user's own, with their sources' hashes, by comma",
    "command": "how the last attempt was called",
    "arm": "label of the runs whose jobs differ only in the seed (see `arms`)",
}
"""Columns of the frame `runs` except those of the job, with their meanings."""

RUN_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(("complete", "dirty"), pl.Boolean()),
    **dict.fromkeys(("num_attempts", "num_ranks", "num_test", "message_bytes"), pl.Int64()),
    "elapsed_s": pl.Float64(),
}
"""Types of those that are not texts."""


@dataclass(frozen=True)
class Frames:
    """A folder of runs. `run` is the key of every frame, an Enum over all runs in the order of their paths.

    `hpclbfl.runs.log.schema` has units and meanings of the columns of logs. `steps` and `layers`, which may be larger
    than memory, are lazy and unordered; they can be read as long as this object lives.
    """

    root: Path
    runs: pl.DataFrame
    """One row per run: RUN_COLUMNS, then the job, a column per dotted key (`optimizer.lr`, `sync.kind`)."""
    steps: pl.LazyFrame
    """One row per run, client and step: run, rank, and the columns of the table `steps`."""
    evals: pl.DataFrame
    """One row per run, evaluation and split, by run and step."""
    layers: pl.LazyFrame
    """One row per run, step and layer."""
    plans: pl.DataFrame
    """One row per run, client and plan, by run and step."""
    events: pl.DataFrame
    """One row per run and event, by run and step; equal events of several ranks are one row."""
    metrics: pl.DataFrame
    """One row per run, step, client and metric of a component, by run and step."""
    problems: pl.DataFrame
    """One row per file that is torn, missing or of another version: run, path, reason, rows_lost (False if a later
    attempt trained all of its steps again). Its rows are in no frame."""
    notes: tuple[str, ...] = ()
    """Notes on the folder, a line each: why no cache is used, which folders cannot be listed."""
    keep_alive: Any = field(default=None, repr=False)


def config_names(runs: pl.DataFrame) -> list[str]:
    """The columns of the frame `runs` that come from the job."""
    return [name for name in runs.columns if name not in RUN_COLUMNS]


def log_schema(table: str) -> dict[str, pl.DataType]:
    """Column types of a log's table as a frame: Int64, Float64, String."""
    kinds: dict[str, pl.DataType] = {"i": pl.Int64(), "f": pl.Float64(), "S": pl.String()}
    dtype = DTYPES[table]
    return {name: kinds[dtype[name].kind] for name in dtype.names or ()}


def log_frame(table: str, parts: list[tuple[int, Table]]) -> pl.DataFrame:
    """Rows of several logs as one frame, each with its log's number in the column `log`.

    Texts become one line of printable characters.
    """
    numbers = np.repeat(np.array([log for log, _ in parts], np.int64), [len(rows) for _, rows in parts])
    columns = [pl.Series("log", numbers)]
    for name, kind in log_schema(table).items():
        values = np.concatenate([rows[name] for _, rows in parts])
        if kind == pl.String():
            # Few distinct texts.
            texts, places = np.unique(values, return_inverse=True)
            known = pl.Series([printable(text.decode(errors="replace")) for text in texts], dtype=pl.String)
            columns.append(known.gather(places).alias(name))
        else:
            columns.append(pl.Series(name, values))
    return pl.DataFrame(columns)

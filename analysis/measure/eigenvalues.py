"""Top eigenvalues of the Hessian at the end of runs, beside their generalisation (Fig. 3).

They are read from the files that `hpclbfl sharpness` writes into run folders; a run without such a file, or with that
of another experiment, has no row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from numpy.typing import NDArray

from hpclbfl.analysis.measure import metrics
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.core.errors import DataError
from hpclbfl.sharpness.store import DTYPES, FILE_NAME, read_sharpness

_COLUMNS = DTYPES["eigenvalues"]

Problem = tuple[str, str, str]
"""A file that is left out: run, path (relative to the loaded folder) and reason, as in `Frames.problems`."""


def read_all(frames: Frames) -> tuple[pl.DataFrame, list[Problem]]:
    """One row per run, optimizer step and eigenvalue, by run, step and index; and the files that are left out.

    A file is left out if it cannot be read, or is of another version or of another experiment than the run, because the
    folder was reused. A run whose hash is unknown accepts any file.

    Columns: run, step (optimizer steps taken), index (0: the largest in magnitude), eigenvalue and residual (nats),
    iterations, num_samples, seed (of the images and start vectors), has_settled (null: not known), top1 (test
    accuracy at that step, 0 to 1, interpolated between evaluations; null: not measured there).
    """
    keys = frames.runs.schema["run"]
    parts: list[pl.DataFrame] = []
    problems: list[Problem] = []
    for run, path, run_hash in frames.runs.select("run", "path", "hash").iter_rows():
        file = Path(path) / FILE_NAME
        if not file.is_file():
            continue
        try:
            table = _read(file, run_hash)
        except DataError as error:
            seen = file.relative_to(frames.root).as_posix()
            problems.append((run, seen, str(error).removeprefix(f"{file}: ")))
            continue
        columns = {name: table[name] for name in table.dtype.names or ()}
        parts.append(pl.DataFrame({"run": pl.Series([run] * len(table), dtype=keys), **columns}))
    types = {name: pl.Float64 if _COLUMNS[name].kind == "f" else pl.Int64 for name in _COLUMNS.names or ()}
    found = pl.concat([pl.DataFrame(schema={"run": keys, **types}), *parts])
    settled = pl.col("has_settled")
    found = found.with_columns(has_settled=pl.when(settled.is_in([0, 1])).then(settled == 1))
    evals = frames.evals.join(found.select("run").unique(), on="run", how="semi")
    steps = found["step"].unique().sort()
    accuracy = metrics.accuracy_at(evals, "steps", [float(step) for step in steps])
    accuracy = accuracy.select("run", "top1", step=pl.col("x").cast(pl.Int64))
    found = found.join(accuracy, on=("run", "step"), how="left", maintain_order="left")
    return found.sort("run", "step", "index", maintain_order=True), problems


def _read(file: Path, run_hash: str | None) -> NDArray[Any]:
    """The eigenvalues of a file, rows of DTYPES.

    Raises:
        DataError: it cannot be read, or is of another version or another experiment than `run_hash`.
    """
    tables, attributes = read_sharpness(file)
    file_hash = attributes.get("hash")
    if run_hash is not None and file_hash != run_hash:
        raise DataError(
            f"{file}: is of experiment {file_hash or 'unknown'}, this run of {run_hash}; "
            "run 'hpclbfl sharpness' again, it replaces the file"
        )
    return tables["eigenvalues"]

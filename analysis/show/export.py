"""Tidy tables as files: `hpclbfl export DIR --format parquet|csv`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import polars as pl

from hpclbfl.analysis.read.frames import RUN_COLUMNS, Frames
from hpclbfl.core.errors import DataError
from hpclbfl.core.files import prepare_output, replacing, write_text
from hpclbfl.runs.log.schema import MEANINGS, UNITS

Format = Literal["parquet", "csv"]
TABLES = ("runs", "steps", "evals", "layers", "plans", "events", "metrics", "problems")
_MORE = {
    "rank": "MPI process that wrote the row",
    "path": "file or folder, seen from the folder that was loaded",
    "reason": "what is wrong with it",
    "rows_lost": "false where a later attempt trained all of its steps again",
}


def export(frames: Frames, folder: Path, form: Format) -> list[tuple[Path, int]]:
    """Write every frame into a folder (runs.parquet, steps.parquet, ...; existing files are replaced) and columns.csv.

    columns.csv has the unit and the meaning of every column. Frames larger than memory are written as a stream. A link
    in the place of a file is replaced, not followed. CSV files hold values as they are, also those that begin with `=`:
    import columns of texts into a spreadsheet as texts.

    Returns:
        Each file and its number of rows.

    Raises:
        EnvironmentFault: a file cannot be written.
        DataError: the cached rows of the logs are damaged.
    """
    written = []
    for name in TABLES:
        lazy: pl.LazyFrame = getattr(frames, name).lazy()
        path = folder / f"{name}.{form}"
        prepare_output(path)
        try:
            with replacing(path) as file:
                if form == "parquet":
                    lazy.sink_parquet(file, compression="zstd")
                else:
                    lazy.sink_csv(file)
        except pl.exceptions.PolarsError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path}: cannot be written: {reason}") from error
        written.append((path, int(lazy.select(pl.len()).collect().item())))
    write_text(folder / "columns.csv", _columns(frames))
    return written


def _columns(frames: Frames) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("table", "column", "unit", "meaning"))
    for name in TABLES:
        for column in getattr(frames, name).lazy().collect_schema():
            meaning = MEANINGS.get(name, {}).get(column) or RUN_COLUMNS.get(column) if name != "problems" else None
            if meaning is None:
                meaning = RUN_COLUMNS["run"] if column == "run" else _MORE.get(column, "key of the job")
            table.writerow((name, column, UNITS.get(name, {}).get(column, ""), meaning))
    return text.getvalue()

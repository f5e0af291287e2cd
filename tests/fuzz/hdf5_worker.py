"""Reads HDF5 files whose kind and path come on standard input, a line each; see test_hdf5.py.

Answers every line with one: `ok` and a digest of what was read, or `told` and the error's line. That nothing else is
raised, and that the process lives on, is for the test to see.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from hpclbfl.core.errors import DataError
from hpclbfl.data.packed import PackedFile
from hpclbfl.planner.store import DTYPE
from hpclbfl.runs.log.reader import read_file, read_last_rows, read_texts
from hpclbfl.runs.log.tables import read_tables
from hpclbfl.sharpness.store import read_sharpness


def read_log(path: Path) -> object:
    log = read_file(path)
    read_last_rows(path, {"steps": 5, "evals": 5})
    return log.attributes, [table.tobytes() for table in log.tables.values()], read_texts(path)


def read_packed(path: Path) -> object:
    with PackedFile(path) as file:
        splits = [
            (name, split.labels.tobytes(), [split.encoded(index) for index in range(min(len(split), 64))])
            for name, split in file.splits.items()
        ]
        file.check(file.fingerprint())
        return file.classes, splits


def read_plan(path: Path) -> object:
    tables, attributes = read_tables(path, {"probes": DTYPE})
    return tables["probes"].tobytes(), attributes


def read_sharp(path: Path) -> object:
    tables, attributes = read_sharpness(path)
    return [rows.tobytes() for rows in tables.values()], attributes


READERS = {"log": read_log, "packed": read_packed, "plan": read_plan, "sharpness": read_sharp}


def main() -> None:
    for line in sys.stdin:
        kind, path = line.rstrip("\n").split(" ", 1)
        try:
            found = READERS[kind](Path(path))
        except DataError as error:
            print("told", repr(str(error)), flush=True)
        else:
            print("ok", hashlib.sha256(repr(found).encode()).hexdigest(), flush=True)


if __name__ == "__main__":
    main()

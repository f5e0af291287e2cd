"""HDF5: logs, packed sets, plan.h5 and sharpness.h5, with bytes changed or with other objects in place of theirs.

They are read in a process of its own (hdf5_worker), so that a crash or a hang of the library is a finding, too.
"""

import ast
import os
import select
import subprocess
import sys

import h5py
import numpy as np
from hypothesis import strategies as st

from hpclbfl.data.packed import write_packed
from hpclbfl.planner.store import ProbeRow, save_probes
from hpclbfl.runs.log.schema import DTYPES
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.sharpness.store import VERSION_1, empty_tables, rows_of, save_sharpness
from tests.fuzz.budget import fuzz

HANG_S = 20.0


class Worker:
    """A process that reads files."""

    def __init__(self):
        self._start()

    def _start(self):
        command = [sys.executable, "-m", "tests.fuzz.hdf5_worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def read(self, kind, path):
        """What it answers; None: it died or hung, and another one is there."""
        self._process.stdin.write(f"{kind} {path}\n")
        self._process.stdin.flush()
        ready = select.select([self._process.stdout], [], [], HANG_S)[0]
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return answer.rstrip("\n")
        self._process.kill()
        self._process.communicate()
        self._start()
        return None

    def close(self):
        self._process.communicate()


def write_files(folder):
    """A small file of each kind, as this version and as older ones write them."""
    rows = np.ones(3, DTYPES["steps"])
    rows["step"] = range(3)
    with RunLog(folder / "log", {"config": "name: x\n", "provenance": "{}", "rank": 1}) as log:
        log.extend("steps", rows)
        log.append("events", step=1, kind="a", text="b")
    write_packed(folder / "packed", ["a", "b"], {"train": [(b"abc" * 9, 0), (b"def", 1)], "test": [(b"x", 1)]})
    save_probes(folder / "plan", [ProbeRow("t_c_s", 2**k, 0, 0.5, 0.2, "fit") for k in range(4)], "m", "d", {"n": 3})
    values = rows_of("eigenvalues", 3, index=range(2), eigenvalue=[2.0, 1.0])
    save_sharpness(folder / "sharpness", {**empty_tables(), "eigenvalues": values}, 3, {"hash": "abc"})
    with h5py.File(folder / "packed.old", "w") as file:
        file.attrs.create("classes", ["a", "b"], dtype=h5py.string_dtype())
        for split in ("train", "test"):
            file[f"{split}/encoded"] = np.arange(9, dtype=np.uint8)
            file[f"{split}/offsets"], file[f"{split}/labels"] = np.array([0, 3, 9]), np.array([0, 1])
    with h5py.File(folder / "sharpness.old", "w") as file:
        file.attrs.update({"schema_version": 1, "hash": "abc"})
        for name, dtype in VERSION_1.items():
            file[name] = np.ones(2 if name == "eigenvalues" else 0, dtype)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


_BYTES = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([b"\0", b"\xff", b"\x01", b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f"]) | st.binary(max_size=8),
)
_TYPES = st.sampled_from(
    [
        "<i8", ">i8", "<i4", "<u8", "u1", "<f8", "<f2", "S1", "S900", h5py.string_dtype(), h5py.vlen_dtype("<i8"),
        h5py.ref_dtype, h5py.enum_dtype({"a": 1}), DTYPES["steps"], DTYPES["events"], [("step", "<i8")],
    ]
)  # fmt: skip
_SHAPES = st.sampled_from([(), (0,), (1,), (2,), (5, 2), (2, 5), (1000,), (10**6,), (10**12,), (3, 4, 5), (1,) * 32])
_PLACES = st.sampled_from(
    ["committed", "steps", "events", "probes", "eigenvalues", "density", "weights", "trace", "train", "test"]
    + [f"train/{name}" for name in ("encoded", "offsets", "labels")]
)
_LINKS = st.sampled_from(["soft", "external", "group", "type", "virtual", "outside", "gone"])
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "chunks": st.just(True), "fletcher32": st.booleans(), "shuffle": st.booleans(),
        "compression": st.sampled_from(["gzip", "lzf"]), "maxshape": st.just((None,)),
    },
)  # fmt: skip
_OBJECTS = st.tuples(_PLACES, st.tuples(_TYPES, _SHAPES, _OPTIONS) | _LINKS)
_ATTRIBUTES = st.tuples(
    st.sampled_from(["classes", "rank", "schema_version", "checksum", "fingerprint", "config", "hash", "attempt"]),
    st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9) | st.lists(st.integers(0, 9), max_size=99)
    | st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=9)
    | st.binary(max_size=9) | st.none(),
)  # fmt: skip


def put(file, place, what):
    """Put another object in a place, or nothing."""
    if place in file:
        del file[place]
    if isinstance(what, tuple):
        dtype, shape, options = what
        data = file.create_dataset(place, shape, dtype, **options)
        if 0 < data.nbytes <= 10**6 and data.dtype.kind in "iufS":
            data[...] = 1
    elif what == "soft":
        file[place] = h5py.SoftLink("/other")
    elif what == "external":
        file[place] = h5py.ExternalLink(file.filename, "steps")
    elif what == "group":
        file.create_group(place)
    elif what == "type":
        file[place] = np.dtype("<i8")
    elif what == "virtual":
        layout = h5py.VirtualLayout((4,), "<i8")
        layout[:] = h5py.VirtualSource(file.filename, "x", (4,))
        file.create_virtual_dataset(place, layout)
    elif what == "outside":
        file.create_dataset(place, (4,), "<i8", external=[("/proc/self/maps", 0, 32)])


def change(content, path, edits):
    """Write a file with its objects changed; what h5py itself cannot make is left out."""
    path.write_bytes(content)
    for edit, name, what in edits:
        try:
            with h5py.File(path, "r+") as file:
                if edit == "object":
                    put(file, name, what)
                elif what is None:
                    file.attrs.pop(name, None)
                else:
                    file.attrs[name] = what
        except (OSError, RuntimeError, ValueError, TypeError, KeyError):
            pass


_EDITS = st.lists(
    _OBJECTS.map(lambda pair: ("object", *pair)) | _ATTRIBUTES.map(lambda pair: ("attribute", *pair)), max_size=3
)


def test_hdf5(tmp_path):
    (tmp_path / "whole").mkdir()
    files = write_files(tmp_path / "whole")
    worker = Worker()
    path = tmp_path / "x.h5"

    def answer_of(name):
        answer = worker.read(name.partition(".")[0], path)
        if answer is None:
            kept = tmp_path / f"finding-{os.getpid()}.h5"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(f"the reader of {kept} died or hung")
        return answer

    expected = {}
    for name, content in files.items():
        path.write_bytes(content)
        expected[name] = answer_of(name)
        assert expected[name].startswith("ok "), expected[name]

    def check(example):
        name, edits, bytes_, length = example
        content = files[name]
        if edits:
            change(content, path, edits)
            content = path.read_bytes()
        damaged = bytearray(content)
        for place, new in bytes_:
            at = int(place * len(damaged))
            damaged[at : at + len(new)] = new
        path.write_bytes(damaged[: int(length * len(damaged))])
        answer = answer_of(name)
        if answer.startswith("told "):
            line = ast.literal_eval(answer.removeprefix("told "))
            assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 1000, line
        elif not edits and not name.endswith(".old"):
            # All that is written has a checksum: it is read as it was, or not at all.
            assert answer == expected[name]

    examples = st.tuples(
        st.sampled_from(sorted(files)), _EDITS, st.lists(_BYTES, max_size=4), st.just(1.0) | st.floats(0, 1)
    )
    try:
        assert fuzz(examples, check) > 0
    finally:
        worker.close()

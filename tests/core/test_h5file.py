"""HDF5 files of any origin: anything unexpected is an error of one line, and is not read."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from h5py import h5pl

from hpclbfl.core.h5file import H5File
from hpclbfl.core.h5library import INTEGERS
from hpclbfl.core.h5object import MAX_NAMES, DamagedFile

PAIR = np.dtype([("a", "<i8"), ("b", "S4")])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


def write(path, make, **options):
    with h5py.File(path, "w", **options) as file:
        make(file)


def reason(path, read):
    with pytest.raises(DamagedFile) as caught, H5File(path) as file:
        read(file)
    assert caught.value.path == path and str(caught.value) == f"{path}: {caught.value.reason}"
    assert "\n" not in caught.value.reason
    return caught.value.reason


def test_valid_files_are_read(path):
    rows = np.array([(1, b"x"), (2, b"yz")], PAIR)

    def make(file):
        file["pairs"] = rows
        file["group/few"] = np.arange(6, dtype=">i2")
        file.create_dataset("group/summed", data=np.arange(9.0), chunks=(4,), fletcher32=True)
        file["none"] = np.zeros(0, np.int64)
        file.attrs.update({"n": 3, "f": 0.5, "t": "ü", "s": np.bytes_(b"fixed")})
        file.attrs["list"] = ["a", "b"]

    write(path, make)
    with H5File(path) as file:
        assert file.names() == ["group", "none", "pairs"]
        pairs = file.dataset("pairs", PAIR)
        assert pairs.read().tolist() == rows.tolist() and pairs.rows(1, 2).tolist() == [(2, b"yz")]
        group = file.group("group")
        few = group.dataset("few", INTEGERS)
        assert few.read().dtype == np.int64 and few.rows(2, 4).tolist() == [2, 3] and few.shape == (6,)
        assert group.dataset("summed", "<f8").rows(3, 6).tolist() == [3.0, 4.0, 5.0]
        assert file.dataset("none", "<i8").read().tolist() == []
        assert file.group("pairs") is None
        assert (file.integer("n"), file.text("t"), file.text("s"), file.texts("list", 2)) == (
            3,
            "ü",
            "fixed",
            ("a", "b"),
        )
        assert file.has("n") and not file.has("m")
    with H5File(path) as file, pytest.raises(DamagedFile, match="attribute 'list' is not a single value"):
        file.attributes()


def test_parts_outlive_the_file_object(path):
    write(path, lambda file: file.create_dataset("x", data=np.arange(5)))
    dataset = H5File(path).dataset("x", "<i8")
    assert dataset.rows(1, 3).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "expected"),
    [
        (np.zeros(1000, np.int64), "<i8", (5, 2), "'x' has shape (1000); expected (5, 2)"),
        (np.zeros((5, 3), np.int64), "<i8", (5, 2), "'x' has shape (5, 3); expected (5, 2)"),
        (np.int64(3), "<i8", (5, 2), "'x' has shape (); expected (5, 2)"),
        (h5py.Empty("<i8"), "<i8", (None,), "'x' has shape (); expected (any)"),
        (np.zeros(4, np.int32), "<i8", (None,), "'x' holds 32-bit integers; expected 64-bit integers"),
        (np.zeros(4, ">i8"), "<i8", (None,), "'x' holds 64-bit integers; expected 64-bit integers"),
        (np.zeros(4, np.uint64), INTEGERS, (None,), "'x' holds unsigned 64-bit integers; expected 64-bit integers"),
        (np.zeros(4), INTEGERS, (None,), "'x' holds 64-bit floats; expected 64-bit integers"),
        (np.zeros(4, "S3"), "<f8", (None,), "'x' holds texts; expected 64-bit floats"),
        (
            np.zeros(4, [("a", "<i8"), ("c", "S4")]),
            PAIR,
            (None,),
            "'x' holds rows of 2 columns (a, c); expected rows of 2 columns (a, b)",
        ),
        (
            np.zeros(4, [("a", "<i8"), ("b", "S400")]),
            PAIR,
            (None,),
            "'x' holds rows of 2 columns (a, b); expected rows of 2 columns (a, b)",
        ),
    ],
)
def test_type_and_shape(path, data, dtype, shape, expected):
    write(path, lambda file: file.create_dataset("x", data=data))
    assert reason(path, lambda file: file.dataset("x", dtype, shape)) == expected


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (h5py.string_dtype(), "texts"),
        (h5py.vlen_dtype(np.int64), "lists"),
        (h5py.ref_dtype, "references"),
        (h5py.regionref_dtype, "references"),
        (h5py.opaque_dtype(np.dtype("M8[s]")), "opaque bytes"),
        (h5py.enum_dtype({"a": 1}), "names of an enumeration"),
        (np.dtype(("<i8", (3,))), "arrays"),
    ],
)
def test_types_that_reach_beyond_a_buffer(path, dtype, name):
    write(path, lambda file: file.create_dataset("x", (4,), dtype))
    assert reason(path, lambda file: file.dataset("x", "<i8")) == f"'x' holds {name}; expected 64-bit integers"


def outside(path):
    other = path.with_name("other.h5")
    write(other, lambda file: file.create_dataset("secret", data=np.arange(4)))
    return other


def external(file, path):
    path.with_name("raw").write_bytes(bytes(32))
    file.create_dataset("x", (4,), np.int64, external=[(str(path.with_name("raw")), 0, 32)])


def virtual(file, path):
    layout = h5py.VirtualLayout((4,), np.int64)
    layout[:] = h5py.VirtualSource(str(outside(path)), "secret", (4,))
    file.create_virtual_dataset("x", layout)


FILTERED = "'x' is compressed or filtered, which is not supported; use h5repack -f NONE"
ELSEWHERE = "'x' is a link to another place, and such links are not followed"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (external, "'x' has its data in other files, which are not read"),
        (virtual, "'x' has its data in other files, which are not read"),
        (lambda file, path: file.__setitem__("x", h5py.ExternalLink(str(outside(path)), "secret")), ELSEWHERE),
        (lambda file, path: file.__setitem__("x", h5py.SoftLink("/nowhere")), ELSEWHERE),
        (lambda file, path: file.create_group("x"), "'x' is not a dataset"),
        (lambda file, path: file.__setitem__("x", np.dtype("<i8")), "'x' is not a dataset"),
        (lambda file, path: None, "has no 'x'"),
        (lambda file, path: file.create_dataset("x", data=np.arange(4), chunks=(4,), compression="gzip"), FILTERED),
        (lambda file, path: file.create_dataset("x", data=np.arange(4), chunks=(4,), shuffle=True), FILTERED),
        (lambda file, path: file.create_dataset("x", data=np.arange(4), chunks=(4,), scaleoffset=2), FILTERED),
        (
            lambda file, path: file.create_dataset("x", (4,), np.int64, maxshape=(None,), chunks=(1 << 24,)),
            "'x' has chunks of 134,217,728 bytes; the limit is 67,108,864",
        ),
    ],
)
def test_storage_and_links(path, make, expected):
    write(path, lambda file: make(file, path))
    assert reason(path, lambda file: file.dataset("x", "<i8")) == expected


def test_an_unknown_filter_loads_no_plugin(path, tmp_path, monkeypatch):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "libbad.so").write_bytes(b"not a library")
    h5pl.append(os.fsencode(plugins))
    write(path, lambda file: file.create_dataset("x", data=np.arange(4), chunks=(4,), fletcher32=True))
    H5File(path).close()
    from hpclbfl.core.h5library import forbid_plugins

    forbid_plugins.cache_clear()
    H5File(path).close()
    assert h5pl.size() == 0


@pytest.mark.parametrize("options", [{}, {"chunks": (100,), "maxshape": (None,)}])
def test_a_dataset_larger_than_the_file_is_refused(path, options):
    write(path, lambda file: file.create_dataset("x", (10**12,), np.int64, **options))
    expected = "is torn: 'x' declares 8,000,000,000,000 bytes, the file has "
    assert reason(path, lambda file: file.dataset("x", "<i8").read()).startswith(expected)
    assert reason(path, lambda file: file.dataset("x", "<i8").rows(0, 10**12)).startswith(expected)


def test_holes_do_not_count(path):
    write(path, lambda file: file.create_dataset("x", (10**6,), np.int64))
    os.truncate(path, 10**9)
    expected = "is torn: 'x' declares 8,000,000 bytes, the file has "
    assert reason(path, lambda file: file.dataset("x", "<i8").read()).startswith(expected)


def test_what_was_never_written(path):
    def make(file):
        file["other"] = np.ones(10_000)
        file.create_dataset("x", (100,), np.int64, chunks=(10,))
        file["x"][:10] = 1

    write(path, make)
    assert reason(path, lambda file: file.dataset("x", "<i8").read()) == "is torn: parts of 'x' were never written"


def test_missing_rows_are_refused(path):
    write(path, lambda file: file.create_dataset("x", data=np.arange(4)))
    assert reason(path, lambda file: file.dataset("x", "<i8").rows(2, 5)) == "is torn: 'x' has 4 elements, not 2 to 5"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**40, "attribute 'n' is 1099511627776; expected a whole number from 0 to 2147483647"),
        (np.uint64(2**64 - 1), "attribute 'n' is 9223372036854775807; expected a whole number from 0 to 2147483647"),
        (-1, "attribute 'n' is -1; expected a whole number from 0 to 2147483647"),
        (1.5, "attribute 'n' is 1.5; expected a whole number from 0 to 2147483647"),
        ("3", "attribute 'n' is '3'; expected a whole number from 0 to 2147483647"),
        (b"a\n\x1b", r"attribute 'n' is 'a\n\x1b'; expected a whole number from 0 to 2147483647"),
        ([1, 2], "attribute 'n' is not a single value"),
        (h5py.Empty("<i8"), "attribute 'n' is not a single value"),
        (np.zeros((1 << 12,)), "attribute 'n' is not a single value"),
        (np.bool_(True), "attribute 'n' holds names of an enumeration; expected numbers or texts"),
        (None, "has no attribute 'n'"),
    ],
)
def test_whole_numbers(path, value, expected):
    write(path, lambda file: file.attrs.update({} if value is None else {"n": value}))
    assert reason(path, lambda file: file.integer("n")) == expected


def test_names_in_messages_are_printable_and_short(path):
    write(path, lambda file: file.create_group("a\n\x1b[31m" + "b" * 5000))

    def read(file):
        (name,) = file.names()
        file.group(name).dataset("x", "<i8")

    told = reason(path, read)
    assert told.startswith("has no 'a\\n\\x1b[31mbbb") and told.endswith("bbb/x'") and len(told) < 120


def test_texts(path):
    def make(file):
        file.attrs.create("lone", b"a\xed\xb3\xbfb", dtype=h5py.string_dtype())
        file.attrs["number"] = 1
        file.attrs["many"] = ["x"] * 5
        file.attrs["rows"] = [["x"]]

    write(path, make)
    with H5File(path) as file:
        assert file.text("lone") == "a\ufffd\ufffd\ufffdb"
    assert reason(path, lambda file: file.text("number")) == "attribute 'number' is 1; expected a text"
    assert reason(path, lambda file: file.texts("many", 4)) == "attribute 'many' has shape (5,); expected 1 to 4 texts"
    assert (
        reason(path, lambda file: file.texts("rows", 4)) == "attribute 'rows' has shape (1, 1); expected 1 to 4 texts"
    )


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"libver": "v108", "userblock_size": 512}])
def test_texts_of_any_length(path, options):
    texts = ["", "a", "ü" * 3000, "b\nc" * 40_000]

    def make(file):
        file.attrs["many"] = texts
        for number in range(6):
            file.attrs[f"later {number}"] = f"text {number}"
        file.create_group("inner").attrs["one"] = "inside"

    write(path, make, **options)
    with H5File(path) as file:
        assert file.texts("many", 9) == tuple(texts)
        assert file.text("later 5") == "text 5"
        assert file.group("inner").text("one") == "inside"


@pytest.mark.parametrize("size", [0, 1 << 62])
def test_reading_a_damaged_heap_of_texts_ends(path, size):
    # The HDF5 library loops forever if the free space has size 0.
    write(path, lambda file: file.attrs.update({"t": "some text"}))
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL")
    assert content[at + 32 : at + 41] == b"some text"
    content[at + 24 : at + 32] = size.to_bytes(8, "little")
    path.write_bytes(content)
    if size:
        with H5File(path) as file:
            assert file.text("t") == "some text"
    else:
        assert reason(path, lambda file: file.text("t")) == (
            "attribute 't' cannot be read: a text is not where it should be"
        )
    content[at : at + 4] = b"XXXX"
    path.write_bytes(content)
    assert reason(path, lambda file: file.text("t")) == "attribute 't' cannot be read: a heap is damaged"


def test_texts_that_grow_when_they_are_read(path):
    # Every name refers to one and the same long text.
    def make(file):
        file.attrs["many"] = ["x" * 100_000, *(f"{number:05}" for number in range(999))]

    write(path, make)
    content = path.read_bytes()
    heaps = [at for at in range(len(content)) if content.startswith(b"GCOL", at)]
    references = [(100_000).to_bytes(4, "little") + at.to_bytes(8, "little") for at in heaps]
    (at,) = (content.index(reference) for reference in references if reference in content)
    path.write_bytes(content[:at] + content[at : at + 16] * 1000 + content[at + 16_000 :])
    assert reason(path, lambda file: file.texts("many", 1000)) == (
        "attribute 'many' cannot be read: the texts are too long"
    )


def test_counts_are_bounded(path):
    def make(file):
        for number in range(MAX_NAMES + 1):
            file.create_group(str(number))
            file.attrs[str(number)] = number

    write(path, make)
    assert reason(path, lambda file: file.names()) == "holds more than 256 objects"
    assert reason(path, lambda file: file.attributes()) == "has 257 attributes; the limit is 256"


def test_paths_that_are_not_files(path, tmp_path):
    assert reason(path, lambda file: None) == "is not there"
    os.mkfifo(path)
    assert reason(path, lambda file: None) == "is not a regular file"
    path.unlink()
    path.write_bytes(b"text")
    expected = "is torn, HDF5 cannot open it (Unable to synchronously open file (file signature not found))"
    assert reason(path, lambda file: None) == expected
    assert reason(tmp_path / "a\0b", lambda file: None).startswith("is torn, HDF5 cannot open it (")
    assert reason(tmp_path, lambda file: None) == "is not a regular file"


def test_a_wrong_checksum_is_reported(path):
    write(path, lambda file: file.create_dataset("x", data=np.arange(100), chunks=(100,), fletcher32=True))
    content = path.read_bytes()
    at = content.index(np.arange(1, 9).tobytes())
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    assert reason(path, lambda file: file.dataset("x", "<i8").read()).startswith("is torn, HDF5 cannot read it (")


def test_a_full_disk_neither_crashes_nor_removes_the_old_file(tmp_path):
    # A file whose descriptor cannot be written fails HDF5 as a full disk does.
    path = tmp_path / "x.h5"
    path.write_bytes(b"old")
    program = f"""
import os, numpy as np
from pathlib import Path
from hpclbfl.core.h5write import new_h5file
from hpclbfl.core.errors import EnvironmentFault
try:
    with new_h5file(Path({str(path)!r})) as file:
        dataset = file.create_dataset("x", (0,), "u1", maxshape=(None,), chunks=(4096,))
        os.dup2(os.open("/dev/null", os.O_RDONLY), file.id.get_vfd_handle())
        for end in range(0, 8 << 20, 1 << 20):
            dataset.resize((end + (1 << 20),))
            dataset[end:] = np.ones(1 << 20, "u1")
            dataset.flush()
except EnvironmentFault as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: cannot be written: bad file descriptor; choose a writable place\n"
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_to_other_files(tmp_path):
    path = tmp_path / "x.h5"
    write(path, lambda file: virtual(file, path))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    reason(path, lambda file: file.dataset("x", "<i8"))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before

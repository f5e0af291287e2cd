"""Small files of tables: what is read is what was written, or one line."""

import h5py
import numpy as np
import pytest

from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.h5object import DamagedFile
from hpclbfl.planner.store import DTYPE, ProbeRow, save_probes
from hpclbfl.runs.log.tables import read_tables
from hpclbfl.sharpness.store import DTYPES, empty_tables, read_sharpness, rows_of, save_sharpness


@pytest.fixture
def plan(tmp_path):
    rows = [ProbeRow("t_c_s", 2**k, 0, 0.1 * k, 0.2, "fit") for k in range(5)]
    save_probes(tmp_path / "plan.h5", rows, "resnet8", "digits 8 px", {"config": "name: x\n", "num_train": 1438})
    return tmp_path / "plan.h5"


@pytest.fixture
def sharpness(tmp_path):
    tables = {
        **empty_tables(),
        "eigenvalues": rows_of("eigenvalues", 3, index=range(4), eigenvalue=[8.0, 4.0, 2.0, 1.0]),
    }
    save_sharpness(tmp_path / "sharpness.h5", tables, 3, {"hash": "abc", "config": "name: \udcff\n"})
    return tmp_path / "sharpness.h5"


def everything(read, path):
    tables, attributes = read(path)
    return {name: rows.tobytes() for name, rows in tables.items()}, attributes


def read_plan(path):
    return read_tables(path, {"probes": DTYPE})


def test_what_is_written_is_read(plan, sharpness):
    tables, attributes = read_plan(plan)
    assert attributes == {"config": "name: x\n", "num_train": 1438}
    assert tables["probes"]["batch"].tolist() == [1, 2, 4, 8, 16]
    tables, attributes = read_sharpness(sharpness)
    assert tables["eigenvalues"]["eigenvalue"].tolist() == [8.0, 4.0, 2.0, 1.0]
    assert attributes == {"hash": "abc", "config": "name: ?\n", "schema_version": 2}


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_plan, read_sharpness])
def test_a_flipped_bit_never_gives_another_number(plan, sharpness, read):
    path = plan if read is read_plan else sharpness
    whole, expected = path.read_bytes(), everything(read, path)
    rng = np.random.default_rng(0)
    reported = 0
    for at in (*range(0, len(whole), 31), *rng.integers(0, len(whole), 200)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert everything(read, path) == expected
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            reported += 1
    assert reported > 20


def test_another_number_is_refused_and_older_files_are_read(plan, sharpness):
    for path, table, column in ((plan, "probes", "measured"), (sharpness, "eigenvalues", "eigenvalue")):
        with h5py.File(path, "r+") as file:
            rows = file[table][()]
            rows[column][1] += 1
            file[table][...] = rows
    with pytest.raises(DamagedFile) as caught:
        read_plan(plan)
    assert caught.value.reason == "is damaged: its content does not match its checksum"
    with pytest.raises(DataError) as told:
        read_sharpness(sharpness)
    again = "delete it and run 'hpclbfl sharpness' again"
    assert str(told.value) == f"{sharpness}: is damaged: its content does not match its checksum; {again}"
    for path in (plan, sharpness):
        with h5py.File(path, "r+") as file:
            del file.attrs["checksum"]
    assert read_plan(plan)[0]["probes"]["measured"][1] == 1.1
    assert read_sharpness(sharpness)[0]["eigenvalues"]["eigenvalue"][1] == 5.0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda file: file.create_dataset("eigenvalues", data=np.zeros(9)),
            "'eigenvalues' holds 64-bit floats; ",
        ),
        (
            lambda file: file.create_dataset("eigenvalues", (10**12,), DTYPES["eigenvalues"], chunks=(64,)),
            "is torn: 'eigenvalues' declares 64,000,000,000,000 bytes, the file has ",
        ),
        (
            lambda file: file.__setitem__("eigenvalues", h5py.ExternalLink("/etc/passwd", "x")),
            "'eigenvalues' is a link",
        ),
        (lambda file: file.create_group("eigenvalues"), "'eigenvalues' is not a dataset"),
        (lambda file: None, "has no 'eigenvalues'"),
    ],
)
def test_tables_that_are_not_ours(sharpness, make, reason):
    with h5py.File(sharpness, "r+") as file:
        del file["eigenvalues"]
        make(file)
    with pytest.raises(DataError) as caught:
        read_sharpness(sharpness)
    assert str(caught.value).startswith(f"{sharpness}: {reason}")


@pytest.mark.parametrize("step", [-1, 2**60])
def test_steps_that_cannot_be(sharpness, step):
    with pytest.raises(DataError, match="'eigenvalues' has steps below 0 or above 9007199254740991"):
        save_sharpness(sharpness, {**empty_tables(), "eigenvalues": rows_of("eigenvalues", step)}, 0, {"hash": "abc"})
        read_sharpness(sharpness)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"plan.h5: cannot be written: file exists"):
        save_probes(tmp_path / "file" / "plan.h5", [], "m", "d", {})
    save_probes(tmp_path / "new" / "plan.h5", [], "m", "d", {})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.h5"]

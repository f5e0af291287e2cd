"""The log of one rank: what was written is read, also if the writer was killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpclbfl.core.errors import DataError, RunFailed
from hpclbfl.runs.log import writer
from hpclbfl.runs.log.reader import TornFile, read_file, read_last_rows, read_texts
from hpclbfl.runs.log.schema import (
    DTYPES,
    MEANINGS,
    SCHEMA_VERSION,
    TABLES,
    UNITS,
    LogAttributes,
    LogTexts,
    fit_text,
)
from hpclbfl.runs.log.writer import BLOCK_ROWS, RunLog

ATTRIBUTES = {"config": "name: run\n" * 20000, "provenance": "{}", "rank": 3, "attempt": 1, "resumed_from_step": 40}

DESIGN = {
    "steps": "step, round, epoch, client, local_batch_size, num_samples, loss, lr, local_grad_sq_norm, grad_sq_norm, "
    "grad_change, scale, tr_sigma, true_grad_sq_norm, b_simple, t_data_s, t_compute_s, t_sync_s, t_wait_s, "
    "t_transfer_s, t_step_s",
    "evals": "step, epoch, num_samples, elapsed_s, split, loss, top1, top5",
    "layers": "step, layer, grad_sq_norm",
    "plans": "step, client, local_batch_size, reason",
    "events": "step, kind, text",
    "metrics": "step, client, name, value",
}


def some_rows(table, count, first=1):
    """Rows whose every column differs from every other."""
    rows = np.zeros(count, DTYPES[table])
    for place, name in enumerate(rows.dtype.names):
        values = (np.arange(count) + first) * 100 + place
        rows[name] = values.astype(str).astype("S") if rows.dtype[name].kind == "S" else values
        if rows.dtype[name].kind == "f":
            rows[name] += 0.1
    return rows


def start_writer(path, body):
    """A Python process with a log at `path`; `body` writes and prints, the log is `log`."""
    head = f"""
        import os, signal, sys, time
        from hpclbfl.runs.log.writer import RunLog
        log = RunLog({str(path)!r}, {{"rank": 0, "attempt": 0, "resumed_from_step": 0}})
        def row(i):
            return (i, 0, 0.5, 0, 32, (i + 1) * 32, i * 0.5, 0.1, *[float(i)] * 13)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_the_designs(table):
    assert ", ".join(DTYPES[table].names) == DESIGN[table]


@pytest.mark.parametrize("table", TABLES)
def test_every_column_comes_back(table, tmp_path):
    rows = some_rows(table, 257)
    with RunLog(tmp_path / "rank00003.h5", ATTRIBUTES) as log:
        for row in rows[:50]:
            log.append_row(table, row.item())
        for row in rows[50:60]:
            log.append(table, **dict(zip(rows.dtype.names, row.item(), strict=True)))
        log.extend(table, rows[60:])
    found = read_file(tmp_path / "rank00003.h5")
    for name in rows.dtype.names:
        np.testing.assert_array_equal(found.tables[table][name], rows[name])
    assert found.tables[table].dtype == DTYPES[table]
    assert all(len(found.tables[other]) == 0 for other in TABLES if other != table)
    assert found.attributes == LogAttributes(3, 1, 40)
    assert read_texts(tmp_path / "rank00003.h5") == LogTexts("name: run\n" * 20000, "{}")


@pytest.mark.parametrize("table", TABLES)
def test_every_column_has_unit_and_meaning(table, tmp_path):
    path = tmp_path / "rank00000.h5"
    RunLog(path, ATTRIBUTES).close()
    with h5py.File(path, "r", swmr=True, locking=False) as file:
        attributes = dict(file[table].attrs)
        assert file["committed"].attrs["order"].split(",") == list(TABLES)
    for name in DTYPES[table].names:
        assert attributes[f"unit.{name}"] == UNITS[table][name]
        assert attributes[f"meaning.{name}"] == MEANINGS[table][name] != ""
        is_text = DTYPES[table][name].kind == "S"
        assert (UNITS[table][name] == "") == is_text
        assert not name.endswith("_s") or UNITS[table][name] == "s"


def test_what_is_left_out(tmp_path):
    with RunLog(tmp_path / "a.h5", ATTRIBUTES) as log:
        log.append("evals", step=4, num_samples=10, split="test", top1=0.5)
        with pytest.raises(ValueError, match=r"unknown \['losss'\], missing \['num_samples'\]"):
            log.append("evals", step=4, losss=1.0)
        with pytest.raises(ValueError, match="unknown log table 'step'; the tables are steps, evals"):
            log.append("step", step=4)
        with pytest.raises(ValueError, match="log table 'steps': rows have type"):
            log.extend("steps", np.zeros(3))
    row = read_file(tmp_path / "a.h5").tables["evals"][0]
    assert (row["step"], row["split"], row["top1"]) == (4, b"test", 0.5)
    assert np.isnan([row["loss"], row["top5"], row["epoch"], row["elapsed_s"]]).all()


def test_text_is_cut_at_a_characters_border(tmp_path):
    with RunLog(tmp_path / "a.h5", ATTRIBUTES) as log:
        log.append_row("events", (7, "note", "ü" * 200))
    text = read_file(tmp_path / "a.h5").tables["events"]["text"][0].decode()
    assert text == "ü" * 126 + "..."
    assert fit_text("a\0b", 8) == b"a b"


def test_reader_sees_rows_while_the_writer_lives(tmp_path):
    path = tmp_path / "rank00000.h5"
    body = """
        for i in range(250):
            log.append_row("steps", row(i))
        print("block", flush=True); sys.stdin.readline()
        log.flush(fsync=True)
        print("all", flush=True); sys.stdin.readline()
    """
    process = start_writer(path, body)
    try:
        assert process.stdout.readline() == "block\n"
        assert read_file(path).tables["steps"]["step"].tolist() == list(range(200))
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "all\n"
        assert read_file(path).tables["steps"]["loss"].tolist() == [i * 0.5 for i in range(250)]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.02, 0.07, 0.2, 0.5])
def test_sigkill_loses_no_flushed_row(tmp_path, delay_s):
    path = tmp_path / "rank00000.h5"
    body = """
        print("ready", flush=True)
        for i in range(10**9):
            log.append_row("steps", row(i))
            if i % 37 == 36:
                log.append("events", step=i, kind="flush", text=str(i))
                log.flush()
                os.write(1, b"%d\\n" % (i + 1))
    """
    process = start_writer(path, body)
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    acknowledged = [int(line) for line in process.communicate()[0].splitlines()]
    steps, events = (read_file(path).tables[name] for name in ("steps", "events"))
    flushed = max(acknowledged, default=0)
    assert len(steps) >= flushed
    assert len(events) >= len(acknowledged)
    numbers = np.arange(len(steps))
    np.testing.assert_array_equal(steps["step"], numbers)
    np.testing.assert_array_equal(steps["loss"], numbers * 0.5)
    np.testing.assert_array_equal(steps["t_step_s"], numbers)


def test_sigkill_right_after_a_flush(tmp_path):
    path = tmp_path / "rank00000.h5"
    body = """
        for i in range(137):
            log.append_row("steps", row(i))
        log.flush()
        for i in range(5):
            log.append_row("steps", row(i))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    start_writer(path, body).communicate()
    assert read_file(path).tables["steps"]["step"].tolist() == list(range(137))


def test_old_rows_are_flushed(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(writer, "monotonic", lambda: now[0])
    path = tmp_path / "rank00000.h5"
    row = some_rows("steps", 1)[0].item()

    def visible():
        return len(read_file(path).tables["steps"])

    with RunLog(path, ATTRIBUTES) as log:
        log.append_row("steps", row)
        now[0] += 1.9
        log.append_row("steps", row)
        log.tick()
        assert visible() == 0
        now[0] += 0.2
        log.append_row("steps", row)
        assert visible() == 3
        log.append_row("steps", row)
        now[0] += 2.0
        log.tick()
        assert visible() == 4
        for _ in range(BLOCK_ROWS):
            log.append_row("steps", row)
        assert visible() == 4 + BLOCK_ROWS


def test_torn_file_is_reported(tmp_path):
    path = tmp_path / "rank00000.h5"
    with RunLog(path, ATTRIBUTES) as log:
        log.extend("steps", some_rows("steps", 2000))
    whole = path.read_bytes()
    torn = tmp_path / "torn.h5"
    for length in [0, 1, 100, 5000, *range(20000, len(whole), 30011), len(whole) - 1]:
        torn.write_bytes(whole[:length])
        with pytest.raises(TornFile, match=r"torn\.h5: is torn") as caught:
            read_file(torn)
        assert caught.value.path == torn
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_never_read_as_data(tmp_path):
    path = tmp_path / "rank00000.h5"
    with RunLog(path, ATTRIBUTES) as log:
        for name in ("steps", "evals", "layers"):
            log.extend(name, some_rows(name, 250))
    whole, expected = path.read_bytes(), read_file(path)
    start = whole.index(expected.tables["steps"].tobytes()[:1000])
    rng = np.random.default_rng(3)
    inside = rng.integers(start, start + 200 * DTYPES["steps"].itemsize, 60)
    reported = 0
    for at in (*inside, *rng.integers(0, len(whole), 300)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_file(path)
        except DataError as error:
            reported += "do not match their checksum" in str(error)
            continue
        assert found.attributes == expected.attributes
        assert all(found.tables[name].tobytes() == expected.tables[name].tobytes() for name in TABLES)
    assert reported >= len(inside)


@pytest.mark.parametrize("bit", [20, 40, 62, 63])
def test_a_flipped_bit_in_the_counter_takes_no_memory(tmp_path, bit):
    path = tmp_path / "rank00000.h5"
    with RunLog(path, ATTRIBUTES) as log:
        log.extend("steps", some_rows("steps", 250))
    with h5py.File(path, "r", swmr=True, locking=False) as file:
        at = file["committed"].id.get_offset() + 16 * TABLES.index("steps")
    damaged = bytearray(path.read_bytes())
    assert int.from_bytes(damaged[at : at + 8], "little") == 250
    damaged[at + bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    count = 250 + 2**bit if bit < 63 else 250 - 2**63
    with pytest.raises(TornFile, match=f"is torn: table 'steps' has 250 of {count} committed rows"):
        read_file(path)


def test_hole_is_reported(tmp_path):
    path = tmp_path / "rank00000.h5"
    rows = some_rows("steps", 2000)
    with RunLog(path, ATTRIBUTES) as log:
        log.extend("steps", rows)
    whole = path.read_bytes()
    at = whole.index(rows[1234].tobytes())
    path.write_bytes(whole[:at] + bytes(DTYPES["steps"].itemsize) + whole[at + DTYPES["steps"].itemsize :])
    with pytest.raises(TornFile, match="table 'steps' has rows of zeros"):
        read_file(path)


def replaced(name, **options):
    """Changes a log: this dataset is another one."""

    def change(file):
        del file[name]
        file.create_dataset(name, **options)

    return change


def noted(name, value):
    """Changes a log: this attribute is another one."""
    return lambda file: file.attrs.__setitem__(name, value)


READ = "import sys; from hpclbfl.runs.log.reader import read_file, read_last_rows; from pathlib import Path\n"


@pytest.mark.parametrize("count", [1000, 10**6])
@pytest.mark.parametrize("call", ["read_file(path)", "read_last_rows(path, {'steps': 50})"])
def test_counters_of_another_shape_overflow_no_buffer(tmp_path, count, call):
    # A process that survives has not had its heap overwritten.
    path = tmp_path / "rank00000.h5"
    RunLog(path, ATTRIBUTES).close()
    with h5py.File(path, "r+") as file:
        replaced("committed", data=np.full(count, 7, np.int64))(file)
    program = READ + f"path = Path({str(path)!r})\ntry:\n    {call}\nexcept Exception as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: 'committed' has shape ({count}); expected (6, 2)\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replaced("committed", data=np.int64(1)), "'committed' has shape (); expected (6, 2)"),
        (replaced("committed", data=np.zeros((6, 2))), "'committed' holds 64-bit floats; expected 64-bit integers"),
        (
            replaced("committed", shape=(6, 2), dtype=h5py.string_dtype()),
            "'committed' holds texts; expected 64-bit integers",
        ),
        (lambda file: file.__delitem__("committed"), "has no 'committed'"),
        (noted("rank", 2**40), "attribute 'rank' is 1099511627776; expected a whole number from 0 to 2147483647"),
        (noted("attempt", -1), "attribute 'attempt' is -1; expected a whole number from 0 to 2147483647"),
        (noted("resumed_from_step", [0] * 999), "attribute 'resumed_from_step' is not a single value"),
        (
            noted("schema_version", np.bytes_(b"two")),
            "attribute 'schema_version' is 'two'; expected a whole number from 0 to 2147483647",
        ),
    ],
)
def test_logs_that_are_not_ours(tmp_path, change, reason):
    path = tmp_path / "rank00000.h5"
    RunLog(path, ATTRIBUTES).close()
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(TornFile) as caught:
        read_file(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize("rows", [10**12, 300])
def test_rows_that_a_log_only_declares(tmp_path, rows):
    path = tmp_path / "rank00000.h5"
    with RunLog(path, ATTRIBUTES) as log:
        log.extend("steps", some_rows("steps", 200))
    with h5py.File(path, "r+") as file:
        file["steps"].resize((rows,))
        file["committed"][0, 0] = rows
    with pytest.raises(TornFile, match=r"is torn: ('steps' declares|table 'steps' has rows of zeros)"):
        read_file(path)


@pytest.mark.parametrize(
    ("table", "column", "value", "reason"),
    [
        ("steps", "step", -1, "table 'steps' has -1 in column 'step'; expected 0 to 9007199254740991"),
        ("steps", "client", -7, "table 'steps' has -7 in column 'client'; expected 0 to 9007199254740991"),
        (
            "steps",
            "num_samples",
            2**62,
            f"table 'steps' has {2**62} in column 'num_samples'; expected 0 to {2**53 - 1}",
        ),
        ("evals", "step", -2, f"table 'evals' has -2 in column 'step'; expected -1 to {2**53 - 2}"),
        ("evals", "step", 2**63 - 1, f"table 'evals' has {2**63 - 1} in column 'step'; expected -1 to {2**53 - 2}"),
        ("steps", "step", 10**6, "the steps of table 'steps' are not in ascending order"),
    ],
)
def test_impossible_numbers(tmp_path, table, column, value, reason):
    rows = some_rows(table, 20)
    rows[column][7] = value
    with RunLog(tmp_path / "a.h5", ATTRIBUTES) as log:
        log.extend(table, rows)
    with pytest.raises(TornFile) as caught:
        read_file(tmp_path / "a.h5")
    assert caught.value.reason == f"is damaged: {reason}"


def test_extreme_numbers(tmp_path):
    with RunLog(tmp_path / "a.h5", ATTRIBUTES) as log:
        log.append("evals", step=-1, num_samples=0, split="test", loss=float("inf"))
        log.append("events", step=3, kind="a", text="later")
        log.append("events", step=1, kind="a", text="earlier")
    assert read_file(tmp_path / "a.h5").tables["events"]["step"].tolist() == [3, 1]


def test_texts_have_a_checksum_and_may_hold_anything(tmp_path):
    path = tmp_path / "a.h5"
    RunLog(path, {"config": "näme: \udcff\0x", "provenance": "{}" * 40_000}).close()
    assert read_texts(path) == LogTexts("näme: ? x", "{}" * 40_000)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"{}{}", b"{}{)", 1))
    with pytest.raises(TornFile, match="is damaged: its texts do not match their checksum"):
        read_texts(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["texts_crc32"]
    assert read_texts(path).provenance.startswith("{}{)")


def test_texts_of_older_logs(tmp_path):
    path = tmp_path / "a.h5"
    RunLog(path, {}).close()
    with h5py.File(path, "r+", libver="latest") as file:
        for name in ("config", "provenance", "texts_crc32"):
            del file.attrs[name]
        file.attrs.update({"config": "name: ü\n" * 9, "provenance": '{"a": 1}'})
    assert read_texts(path) == LogTexts("name: ü\n" * 9, '{"a": 1}')


def test_the_newest_rows_alone(tmp_path):
    path = tmp_path / "a.h5"
    rows = some_rows("steps", 250)
    with RunLog(path, ATTRIBUTES) as log:
        log.extend("steps", rows)
        found = read_last_rows(path, {"steps": 60, "evals": 5})
        assert found["steps"].tobytes() == rows[190:].tobytes() and len(found["evals"]) == 0
    with h5py.File(path, "r+") as file:
        file["committed"][0, 0] = 251
    with pytest.raises(TornFile, match="is torn: table 'steps' has 250 of 251 committed rows"):
        read_last_rows(path, {"steps": 60})


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(TornFile, match="is not there"):
        read_file(tmp_path / "none.h5")
    with h5py.File(tmp_path / "foreign.h5", "w", libver="latest") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION + 1
    with pytest.raises(DataError, match="has log schema 4; this version reads schema 2 and 3"):
        read_file(tmp_path / "foreign.h5")


def test_a_log_is_written_once(tmp_path):
    path = tmp_path / "rank00000.h5"
    log = RunLog(path, ATTRIBUTES)
    with pytest.raises(RunFailed, match=r"rank00000\.h5: exists already"):
        RunLog(path, ATTRIBUTES)
    log.close()
    log.close()
    with pytest.raises(RunFailed, match="the log is closed"):
        log.extend("steps", some_rows("steps", 1))
    assert [p.name for p in tmp_path.iterdir()] == ["rank00000.h5"]


def test_no_such_folder(tmp_path):
    with pytest.raises(RunFailed, match=r"a\.h5: the log cannot be written: .*No such file") as caught:
        RunLog(tmp_path / "none" / "a.h5", ATTRIBUTES)
    assert "\n" not in str(caught.value)


def test_failing_disk_is_one_line(tmp_path):
    # A descriptor that cannot be written fails HDF5 as a full disk does, which it would not survive by itself.
    path = tmp_path / "rank00000.h5"
    body = """
        from hpclbfl.core.errors import RunFailed
        for i in range(1050):
            log.append_row("steps", row(i))
        os.dup2(os.open(log.path, os.O_RDONLY), log._file.id.get_vfd_handle())
        for i in range(1050, 1103):
            try:
                log.append_row("steps", row(i))
            except RunFailed as error:
                print(error)
        log.close()
        print("closed")
    """
    process = start_writer(path, body)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.splitlines() == [f"{path}: the log cannot be written: Bad file descriptor"] * 4 + ["closed"]
    assert read_file(path).tables["steps"]["step"].tolist() == list(range(1000))


def test_speed_is_printed(tmp_path, capsys):
    row = some_rows("steps", 1)[0].item()
    count = 20_000
    with RunLog(tmp_path / "a.h5", ATTRIBUTES) as log:
        begin = time.perf_counter()
        for _ in range(count):
            log.append_row("steps", row)
        log.flush()
        took = time.perf_counter() - begin
    begin = time.perf_counter()
    read_file(tmp_path / "a.h5")
    with capsys.disabled():
        read_ms = (time.perf_counter() - begin) * 1e3
        print(f"\nlog: {took / count * 1e6:.1f} us per row written, {read_ms:.1f} ms to read {count} rows back")
    assert (
        Path(tmp_path / "a.h5").stat().st_size < 1.2 * count * DTYPES["steps"].itemsize + os.sysconf("SC_PAGESIZE") * 20
    )
